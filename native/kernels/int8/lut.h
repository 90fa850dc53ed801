/* Bits times int8 activations by table lookup, for formats of one-bit planes. Include after linear.h, and give lut_run
 * to LT_KERNEL instead of linear_run.
 *
 * Four bits of a byte are four weights, 0 or 1, so what they add to a row's sum is one of sixteen numbers that are known
 * before any weight is read: a table, made once for all rows and planes. A byte shuffle looks up as many rows as a
 * register has bytes; no bit is shifted out by itself, and nothing is multiplied. (T-MAC: Wei et al. 2024,
 * arXiv:2407.00088. Its tables are rounded to eight bits; these are exact.) A number, -508..508, plus 512 is kept as its
 * low and its high five bits: eight of either add up in a byte.
 *
 * A byte holds one column of each of a chunk's eight steps, so byte b of every row has two tables: of columns b, 4 + b,
 * 8 + b and 12 + b, and of those 16 further on. */
#pragma once
#include "i8x64.h"

/* Fewer instructions than a dot product of bytes, too, unless that takes registers of 64. */
#if (defined(__AVX2__) && !defined(__AVX512VNNI__) || defined(__aarch64__)) && !defined(LT_PLAIN)

enum {
    LUT_CHUNKS = 4, /* as many as a group has: their sums fit 16 bits */
    LUT_BIAS = 512  /* in every number; the sum of a chunk has it eight times */
};

typedef uint8_t lut[4][2][2][16]; /* [byte][its low or high bits][low or high bits of a number][number] */

/* lut_make(tables, codes): of a chunk of activations.
 *
 * lut_dot(sums, first, second, ahead, tables, chunks): the rows of two blocks, over up to LUT_CHUNKS chunks. The bytes
 * that will be wanted next lie `ahead` of these. */

#ifdef __AVX2__

LT_INLINE void lut_make(lut tables, const int8_t *codes) {
    const __m256i all = _mm256_loadu_si256((const __m256i *)codes); /* a lane per table */
    /* Number n, up to 7, has the columns of n's bits; 8 + n has the fourth too. */
    const __m256i pair = _mm256_set1_epi64x(0x0101010000010000);
    const __m256i third = _mm256_set_epi16(1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m256i fourth = _mm256_set1_epi16(0x0100), five = _mm256_set1_epi16(31), bias = _mm256_set1_epi16(LUT_BIAS);
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
        const __m256i ab = _mm256_shuffle_epi8(all, _mm256_set1_epi16((short)((4 + b) << 8 | b)));
        const __m256i cd = _mm256_shuffle_epi8(all, _mm256_set1_epi16((short)((12 + b) << 8 | (8 + b))));
        const __m256i some = _mm256_add_epi16(_mm256_maddubs_epi16(pair, ab), _mm256_maddubs_epi16(third, cd));
        const __m256i low = _mm256_add_epi16(some, bias);
        const __m256i high = _mm256_add_epi16(low, _mm256_maddubs_epi16(fourth, cd));
        const __m256i ones = _mm256_packus_epi16(_mm256_and_si256(low, five), _mm256_and_si256(high, five));
        const __m256i rest = _mm256_packus_epi16(_mm256_srli_epi16(low, 5), _mm256_srli_epi16(high, 5));
        _mm_store_si128((__m128i *)tables[b][0][0], _mm256_castsi256_si128(ones));
        _mm_store_si128((__m128i *)tables[b][1][0], _mm256_extracti128_si256(ones, 1));
        _mm_store_si128((__m128i *)tables[b][0][1], _mm256_castsi256_si128(rest));
        _mm_store_si128((__m128i *)tables[b][1][1], _mm256_extracti128_si256(rest, 1));
    }
}

/* Eight rows: byte 0 of four, then their bytes 1, 2, 3, in each lane. */
LT_INLINE __m256i lut_gather(const uint8_t *data) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)data), _mm256_broadcastsi128_si256(order));
}

LT_INLINE __m256i lut_at(const uint8_t table[16], __m256i index) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table)), index);
}

LT_INLINE void lut_dot(i32x16 sums[2], const uint8_t *first, const uint8_t *second, int64_t ahead, const lut *tables,
                       int32_t chunks) {
    const __m256i nibble = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
    /* Of two rows: both, mod 2^16, and the second alone, which leaves the first. */
    __m256i low_both = zero, low_odd = zero, high_both = zero, high_odd = zero;
    for (int32_t c = 0; c < chunks; c++, first += VECTOR, second += VECTOR) {
        __builtin_prefetch(first + ahead);
        __builtin_prefetch(second + ahead);
        const __m256i r0 = lut_gather(first), r1 = lut_gather(first + 32);
        const __m256i r2 = lut_gather(second), r3 = lut_gather(second + 32);
        const __m256i p = _mm256_unpacklo_epi32(r0, r1), q = _mm256_unpacklo_epi32(r2, r3);
        const __m256i s = _mm256_unpackhi_epi32(r0, r1), t = _mm256_unpackhi_epi32(r2, r3);
        /* Byte b of 32 rows. Quarters of lanes: the first block's rows 0, 8, the second's 0, 8; the upper lane is four
         * rows on. */
        const __m256i byte[4] = {_mm256_unpacklo_epi64(p, q), _mm256_unpackhi_epi64(p, q), //
                                 _mm256_unpacklo_epi64(s, t), _mm256_unpackhi_epi64(s, t)};
        __m256i low = zero, high = zero;
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++) {
            const __m256i lower = _mm256_and_si256(byte[b], nibble);
            const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(byte[b], 4), nibble);
            low = _mm256_add_epi8(low, lut_at(tables[c][b][0][0], lower));
            high = _mm256_add_epi8(high, lut_at(tables[c][b][0][1], lower));
            low = _mm256_add_epi8(low, lut_at(tables[c][b][1][0], upper));
            high = _mm256_add_epi8(high, lut_at(tables[c][b][1][1], upper));
            __asm__("" : "+x"(low), "+x"(high)); /* one byte after the other: gcc would run out of registers */
        }
        low_both = _mm256_add_epi16(low_both, low);
        low_odd = _mm256_add_epi16(low_odd, _mm256_srli_epi16(low, 8));
        high_both = _mm256_add_epi16(high_both, high);
        high_odd = _mm256_add_epi16(high_odd, _mm256_srli_epi16(high, 8));
    }
    const __m256i both = _mm256_add_epi16(low_both, _mm256_slli_epi16(high_both, 5));
    const __m256i odd = _mm256_add_epi16(low_odd, _mm256_slli_epi16(high_odd, 5));
    const __m256i even = _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8));
    const __m256i rows[2] = {_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd)};
    const i32x16 bias = iset1(chunks * 8 * LUT_BIAS);
    for (int i = 0; i < 2; i++)
        sums[i] = isub((i32x16){_mm256_unpacklo_epi16(rows[i], zero), _mm256_unpackhi_epi16(rows[i], zero)}, bias);
}

#else /* NEON */

LT_INLINE void lut_make(lut tables, const int8_t *codes) {
    static const int16_t bits[3][8] = {{0, 1, 0, 1, 0, 1, 0, 1}, {0, 0, 1, 1, 0, 0, 1, 1}, {0, 0, 0, 0, 1, 1, 1, 1}};
    const int16x8_t first = vld1q_s16(bits[0]), second = vld1q_s16(bits[1]), third = vld1q_s16(bits[2]);
#pragma GCC unroll 2
    for (int n = 0; n < 2; n++) {
        const int8x16_t some = vld1q_s8(codes + 16 * n);
        const int16x8_t ab = vmovl_s8(vget_low_s8(some)), cd = vmovl_high_s8(some);
        /* Number i, up to 7, has the columns of i's bits; 8 + i has the fourth too. */
#define LUT_TABLE(b)                                                                                            \
    do {                                                                                                        \
        int16x8_t low = vmlaq_laneq_s16(vdupq_n_s16(LUT_BIAS), first, ab, b);                                   \
        low = vmlaq_laneq_s16(vmlaq_laneq_s16(low, second, ab, 4 + b), third, cd, b);                           \
        const int16x8_t high = vaddq_s16(low, vdupq_laneq_s16(cd, 4 + b));                                      \
        const int8x16_t ones = vmovn_high_s16(vmovn_s16(low), high);                                            \
        const int8x16_t rest = vshrn_high_n_s16(vshrn_n_s16(low, 5), high, 5);                                  \
        vst1q_u8(tables[b][n][0], vandq_u8(vreinterpretq_u8_s8(ones), vdupq_n_u8(31)));                         \
        vst1q_u8(tables[b][n][1], vreinterpretq_u8_s8(rest));                                                   \
    } while (0)
        LUT_TABLE(0);
        LUT_TABLE(1);
        LUT_TABLE(2);
        LUT_TABLE(3);
#undef LUT_TABLE
    }
}

LT_INLINE void lut_dot(i32x16 sums[2], const uint8_t *first, const uint8_t *second, int64_t ahead, const lut *tables,
                       int32_t chunks) {
    uint16x8_t low[2][2], high[2][2]; /* of a block's rows 0..7, 8..15 */
    for (int i = 0; i < 2; i++)
        for (int h = 0; h < 2; h++) low[i][h] = high[i][h] = vdupq_n_u16(0);
    for (int32_t c = 0; c < chunks; c++, first += VECTOR, second += VECTOR) {
        __builtin_prefetch(first + ahead);
        __builtin_prefetch(second + ahead);
        const uint8x16x4_t bytes[2] = {vld4q_u8(first), vld4q_u8(second)}; /* byte b of sixteen rows */
        uint8x16_t ones[2], rest[2];
#pragma GCC unroll 4
        for (int b = 0; b < 4; b++)
#pragma GCC unroll 2
            for (int n = 0; n < 2; n++) {
                const uint8x16_t ones_of = vld1q_u8(tables[c][b][n][0]), rest_of = vld1q_u8(tables[c][b][n][1]);
#pragma GCC unroll 2
                for (int i = 0; i < 2; i++) {
                    const uint8x16_t byte = bytes[i].val[b];
                    const uint8x16_t index = n ? vshrq_n_u8(byte, 4) : vandq_u8(byte, vdupq_n_u8(15));
                    const uint8x16_t one = vqtbl1q_u8(ones_of, index), more = vqtbl1q_u8(rest_of, index);
                    ones[i] = b || n ? vaddq_u8(ones[i], one) : one;
                    rest[i] = b || n ? vaddq_u8(rest[i], more) : more;
                }
            }
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            low[i][0] = vaddw_u8(low[i][0], vget_low_u8(ones[i]));
            low[i][1] = vaddw_high_u8(low[i][1], ones[i]);
            high[i][0] = vaddw_u8(high[i][0], vget_low_u8(rest[i]));
            high[i][1] = vaddw_high_u8(high[i][1], rest[i]);
        }
    }
    const i32x16 bias = iset1(chunks * 8 * LUT_BIAS);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        i32x16 all;
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const int16x8_t sum = vreinterpretq_s16_u16(vaddq_u16(low[i][h], vshlq_n_u16(high[i][h], 5)));
            all.q[2 * h] = vmovl_s16(vget_low_s16(sum));
            all.q[2 * h + 1] = vmovl_high_s16(sum);
        }
        sums[i] = isub(all, bias);
    }
}

#endif

enum {
    LUT_PANEL = 64,  /* chunks whose tables are kept at a time: they stay in the first cache */
    LUT_BLOCKS = 32, /* blocks that share them, at most: those of many tokens stay in the second */
    LUT_WORTH = 4    /* and at least: a chunk's tables take as long as one or two blocks of it */
};
_Static_assert(COLUMNS == 32 && BYTES == 64 && !WHOLE, "planes of bits, in groups of at most 128 columns");

/* Adds the groups first <= g < last of a token, whose tables these are, to the rows of two blocks. */
LT_INLINE void lut_pair(const lt_op *op, const lt_step *step, const format *f, const int32_t block[2], int64_t ahead,
                        int32_t first, int32_t last, int32_t token, const lut *tables, float *y[2]) {
    const float *act_scale = lt_row(op, step, 2, token), *act_sum = lt_row(op, step, 3, token);
    f32x16 sum[2] = {vload(y[0]), vload(y[1])};
    for (int32_t g = first; g < last; g++, tables += f->group) {
        const int32_t chunks = lt_min(f->group, f->chunks - g * f->group);
        for (int32_t p = 0; p < f->planes; p++) {
            i32x16 dot[2];
            const uint8_t *data[2] = {group_at(f, block[0], g, p, chunks), group_at(f, block[1], g, p, chunks)};
            lut_dot(dot, data[0], data[1], ahead, tables, chunks);
            for (int i = 0; i < 2; i++)
                sum[i] = add_group(sum[i], dot[i], grid_at(f, block[i], g, p), act_scale[g], act_sum[g]);
        }
    }
    for (int i = 0; i < 2; i++) vstore(y[i], sum[i]);
}

/* Up to LUT_BLOCKS blocks times a token. */
static void lut_blocks(const lt_op *op, const lt_step *step, const format *f, int32_t block, int32_t blocks,
                       int32_t token) {
    const int8_t *codes = lt_row(op, step, 1, token);
    const int32_t groups = lt_ceil_div(f->chunks, f->group), panels = lt_ceil_div(f->chunks, LUT_PANEL);
    const int32_t at_once = lt_ceil_div(groups, panels);
    const int64_t ahead = 2 * (int64_t)f->chunks * f->planes * BYTES;
    lut tables[LUT_PANEL + LUT_CHUNKS] __attribute__((aligned(VECTOR)));
    float y[LUT_BLOCKS][BLOCK];
    memset(y, 0, (size_t)blocks * sizeof *y);
    for (int32_t first = 0; first < groups; first += at_once) {
        const int32_t last = lt_min(first + at_once, groups), begin = first * f->group;
        const int32_t end = lt_min(last * f->group, f->chunks);
        for (int32_t c = begin; c < end; c++) lut_make(tables[c - begin], codes + c * COLUMNS);
        for (int32_t b = 0; b < blocks; b += 2) {
            const int32_t other = lt_min(b + 1, blocks - 1); /* the same, if it is alone */
            lut_pair(op, step, f, (int32_t[2]){block + b, block + other}, ahead, first, last, token, tables,
                     (float *[2]){y[b], y[other]});
        }
    }
    for (int32_t b = 0; b < blocks; b++) store_rows(op, step, token, block + b, vload(y[b]));
}

static void lut_run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t block = begin * BLOCKS_PER_PART, tokens = lt_rows(op, step);
    const int32_t last = lt_min(end * BLOCKS_PER_PART, lt_ceil_div(op->arg[0].cols, BLOCK));
    /* With a dot product of bytes, tiles of many tokens take fewer instructions. */
    if ((tokens > 1 && WHOLE_BYTES) || last - block < LUT_WORTH) {
        linear_run(op, step, begin, end);
        return;
    }
    const format f = format_open(op, step);
    for (int32_t b = block; b < last; b += LUT_BLOCKS)
        for (int32_t t = 0; t < tokens; t++) lut_blocks(op, step, &f, b, lt_min(LUT_BLOCKS, last - b), t);
}

#else
#define lut_run linear_run
#endif
