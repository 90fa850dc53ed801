/* Sixty-four bytes of packed weights, sixteen rows of four, and their products with int8 activations.
 *
 * An integer kernel sees only these types, so it is written once; sums are exact, so its results do not depend on the
 * CPU. A body per ISA:
 *
 *     u8x64   bytes of weights: [16 rows][4]
 *     i8x4    four activations, for every row: a step
 *     i8run   the activations of several steps
 *     i32x16  a sum for every row
 *     narrow  sums that dot4 adds to; add what they hold to an i32x16 before SAFE_STEPS(largest product) steps are over
 *
 * istore_i8(p, x): 64 whole numbers in -128..127, as bytes in their order. isplit(hi, lo, x): 64 of up to 2^13, as two
 * digits in base 128, -64..64, or lo in 0..127 where no product can overflow. isums(p, x): four sums, of sixteen numbers
 * each.
 *
 * u8lookup(table, i): the bytes that indices 0..15 name.
 *
 * u8trit(v): the first digit, 0, 1 or 2, of a ternary fraction (t5.h), less one where weights are signed. u8fraction(v)
 * is a packed one as this likes it, less 128 or not: multiplying by 3 does not care.
 *
 * u8field(v, width, i) is field i of every byte, `width` bits wide. Where a product costs the same however large the
 * weight, fields stay in their place (IN_PLACE), times 2^(width * i), each with sums of its own that are shifted once
 * at the end. LAST_SHIFTED: all but the byte's last field, whose sign a signed product would misread. NEGATIVE_BITS:
 * but a field of one bit is 0 or -1.
 *
 * u8down4(v): the upper four bits in the lower ones' place; what stands above them is not said.
 *
 * SIGNED_WEIGHTS: dot4 takes the bytes of weights as signed. WHOLE_BYTES: it may be given all 256 of them.
 *
 * TILE_TOKENS x TILE_BLOCKS are the sums that fit the registers; CHAINS of them hide the latency of a product, and
 * there is room for those of STREAMS blocks with one token, or of one block with AT_ONCE. Up to FEW_TOKENS are better
 * taken so than by way of a panel. SPAN:
 * the steps whose activations one load brings. PAIRED: a panel's steps are put together by twos, rows of 8 bytes (u8pair),
 * that meet two tokens at once (dot8); unpair gives each its sums. AMX: there are registers for whole tiles, too. */
#pragma once
#include "../f32x16.h"
#include "../kernel.h"

#define LT_INLINE static inline __attribute__((always_inline))

enum {
    STEP = 4,        /* codes */
    VECTOR = 64,     /* bytes: sixteen rows of a step */
    PREFETCH = 2048, /* bytes ahead of what is read, in each of the streams */
};

#if defined(__AVX512VNNI__) && !defined(LT_PLAIN)

typedef __m512i u8x64;
typedef __m512i i8x4;
typedef __m512i i32x16;
typedef __m512i narrow;
#define IN_PLACE 1
#define LAST_SHIFTED 0
#define SIGNED_WEIGHTS 0
#define WHOLE_BYTES 1
#define SAFE_STEPS(product) INT32_MAX
#define TILE_TOKENS 12
#define TILE_BLOCKS 2
#define STREAMS 2
#define AT_ONCE 4
#define FEW_TOKENS 8
#ifdef LT_AMX_TILES
#define AMX 1
#endif

LT_INLINE u8x64 u8load(const uint8_t *p) { return _mm512_loadu_si512(p); }
LT_INLINE void u8store(uint8_t *p, u8x64 v) { _mm512_storeu_si512(p, v); }
LT_INLINE u8x64 u8or(u8x64 a, u8x64 b) { return _mm512_or_si512(a, b); }
LT_INLINE u8x64 u8field(u8x64 v, int width, int i) {
    return _mm512_and_si512(v, _mm512_set1_epi8((char)(((1 << width) - 1) << (width * i))));
}
LT_INLINE u8x64 u8down(u8x64 v, int width, int i) {
    return _mm512_and_si512(_mm512_srli_epi16(v, (unsigned)(width * i)), _mm512_set1_epi8((char)((1 << width) - 1)));
}
LT_INLINE u8x64 u8down4(u8x64 v) { return _mm512_srli_epi16(v, 4); }
LT_INLINE u8x64 u8up(u8x64 v, int bits) { return _mm512_slli_epi16(v, (unsigned)bits); }
LT_INLINE u8x64 u8add(u8x64 a, u8x64 b) { return _mm512_add_epi8(a, b); }
typedef __m512i u8x16; /* in every quarter */
LT_INLINE u8x16 u8table(const uint8_t *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p)); }
LT_INLINE u8x64 u8lookup(u8x16 table, u8x64 i) { return _mm512_shuffle_epi8(table, i); }
LT_INLINE u8x64 u8signed(u8x64 v) { return _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80)); }
LT_INLINE u8x64 u8fraction(u8x64 v) { return u8signed(v); }
LT_INLINE u8x64 u8times3(u8x64 v) { return u8add(u8add(v, v), v); }
LT_INLINE u8x64 u8trit(u8x64 v) {
    const __m512i one = _mm512_set1_epi8(1);
    const __m512i first = _mm512_maskz_mov_epi8(_mm512_cmpgt_epi8_mask(v, _mm512_set1_epi8(-43)), one);
    return _mm512_mask_add_epi8(first, _mm512_cmpgt_epi8_mask(v, _mm512_set1_epi8(42)), one, one);
}
LT_INLINE i8x4 i8load4(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}
LT_INLINE narrow nzero(void) { return _mm512_setzero_si512(); }
/* As assembly for gcc, which keeps the intrinsic's sums in memory as well as in registers once there are many (seen
 * with gcc 12). */
LT_INLINE narrow dot4(narrow sums, u8x64 w, i8x4 a) {
#ifdef __clang__
    return _mm512_dpbusd_epi32(sums, w, a);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(w), "v"(a));
    return sums;
#endif
}
LT_INLINE narrow dot4at(narrow sums, u8x64 w, const int8_t *p) {
#ifdef __clang__
    return dot4(sums, w, i8load4(p));
#else
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(w), "m"(*(const int32_t(*)[1])p));
    return sums;
#endif
}
LT_INLINE i32x16 izero(void) { return _mm512_setzero_si512(); }
LT_INLINE i32x16 iset1(int32_t x) { return _mm512_set1_epi32(x); }
LT_INLINE i32x16 iload(const int32_t *p) { return _mm512_loadu_si512(p); }
LT_INLINE void istore(int32_t *p, i32x16 x) { _mm512_storeu_si512(p, x); }
LT_INLINE i32x16 isub(i32x16 a, i32x16 b) { return _mm512_sub_epi32(a, b); }
LT_INLINE i32x16 iadd(i32x16 a, i32x16 b) { return _mm512_add_epi32(a, b); }
LT_INLINE i32x16 ishl(i32x16 a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
LT_INLINE i32x16 ishr(i32x16 a, int n) { return _mm512_srai_epi32(a, (unsigned)n); }
LT_INLINE i32x16 widen(i32x16 total, narrow sums) { return _mm512_add_epi32(total, sums); }
LT_INLINE f32x16 vfrom_i32(i32x16 a) { return _mm512_cvtepi32_ps(a); }
LT_INLINE i32x16 vto_i32(f32x16 a) { return _mm512_cvtps_epi32(a); }
LT_INLINE void istore_i8(int8_t *p, const i32x16 x[4]) {
    const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(x[0], x[1]), _mm512_packs_epi32(x[2], x[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, bytes));
}
LT_INLINE void isplit(int8_t *hi, int8_t *lo, const i32x16 x[4]) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i high[2], low[2];
    for (int i = 0; i < 2; i++) {
        const __m512i words = _mm512_packs_epi32(x[2 * i], x[2 * i + 1]);
        high[i] = _mm512_srai_epi16(words, 7);
        low[i] = _mm512_and_si512(words, _mm512_set1_epi16(127));
    }
    _mm512_storeu_si512(hi, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(high[0], high[1])));
    _mm512_storeu_si512(lo, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low[0], low[1])));
}
LT_INLINE __m512i add_pairs(__m512i x, __m512i y) { /* (x0 + x2, y0 + y2, x1 + x3, y1 + y3) of every quarter */
    return _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
}
LT_INLINE void isums(int32_t *p, const i32x16 x[4]) {
    const __m512i some = add_pairs(x[0], x[2]), others = add_pairs(x[1], x[3]), all = add_pairs(some, others);
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    _mm_storeu_si128((__m128i *)p, _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

#elif defined(__AVX2__) && !defined(LT_PLAIN)

typedef struct {
    __m256i a, b;
} u8x64; /* rows 0..7, rows 8..15 */
typedef __m256i i8x4;
typedef u8x64 i32x16;
typedef u8x64 narrow;
#define IN_PLACE 0
#define LAST_SHIFTED 0
#define SIGNED_WEIGHTS 0
#define TILE_BLOCKS 1

LT_INLINE u8x64 u8load(const uint8_t *p) {
    return (u8x64){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32))};
}
LT_INLINE void u8store(uint8_t *p, u8x64 v) {
    _mm256_storeu_si256((__m256i *)p, v.a);
    _mm256_storeu_si256((__m256i *)(p + 32), v.b);
}
LT_INLINE u8x64 u8or(u8x64 v, u8x64 w) { return (u8x64){_mm256_or_si256(v.a, w.a), _mm256_or_si256(v.b, w.b)}; }
LT_INLINE __m256i down_half(__m256i v, int width, int i) {
    if (i) v = _mm256_srli_epi16(v, width * i);
    return _mm256_and_si256(v, _mm256_set1_epi8((char)((1 << width) - 1)));
}
LT_INLINE u8x64 u8down(u8x64 v, int width, int i) {
    return (u8x64){down_half(v.a, width, i), down_half(v.b, width, i)};
}
LT_INLINE u8x64 u8field(u8x64 v, int width, int i) { return u8down(v, width, i); }
LT_INLINE u8x64 u8down4(u8x64 v) { return u8down(v, 4, 1); }
LT_INLINE u8x64 u8up(u8x64 v, int bits) {
    return (u8x64){_mm256_slli_epi16(v.a, bits), _mm256_slli_epi16(v.b, bits)};
}
LT_INLINE i8x4 i8load4(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}
typedef __m256i u8x16; /* in both halves */
LT_INLINE u8x16 u8table(const uint8_t *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p)); }
LT_INLINE u8x64 u8lookup(u8x16 table, u8x64 i) {
    return (u8x64){_mm256_shuffle_epi8(table, i.a), _mm256_shuffle_epi8(table, i.b)};
}
LT_INLINE u8x64 u8add(u8x64 v, u8x64 w) { return (u8x64){_mm256_add_epi8(v.a, w.a), _mm256_add_epi8(v.b, w.b)}; }
LT_INLINE u8x64 u8signed(u8x64 v) {
    const __m256i top = _mm256_set1_epi8((char)0x80);
    return (u8x64){_mm256_xor_si256(v.a, top), _mm256_xor_si256(v.b, top)};
}
LT_INLINE u8x64 u8fraction(u8x64 v) { return u8signed(v); }
LT_INLINE u8x64 u8times3(u8x64 v) { return u8add(u8add(v, v), v); }
LT_INLINE __m256i trit_half(__m256i v) { /* a comparison gives -1 for true */
    const __m256i first = _mm256_cmpgt_epi8(v, _mm256_set1_epi8(-43));
    const __m256i second = _mm256_cmpgt_epi8(v, _mm256_set1_epi8(42));
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(first, second));
}
LT_INLINE u8x64 u8trit(u8x64 v) { return (u8x64){trit_half(v.a), trit_half(v.b)}; }
LT_INLINE i32x16 izero(void) { return (i32x16){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
LT_INLINE i32x16 iset1(int32_t x) { return (i32x16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LT_INLINE i32x16 iload(const int32_t *p) { return u8load((const uint8_t *)p); }
LT_INLINE void istore(int32_t *p, i32x16 x) { u8store((uint8_t *)p, x); }
LT_INLINE i32x16 isub(i32x16 x, i32x16 y) {
    return (i32x16){_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}
LT_INLINE i32x16 iadd(i32x16 x, i32x16 y) {
    return (i32x16){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
LT_INLINE i32x16 ishl(i32x16 x, int n) { return (i32x16){_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
LT_INLINE i32x16 ishr(i32x16 x, int n) { return (i32x16){_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
LT_INLINE narrow nzero(void) { return izero(); }
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
#define SAFE_STEPS(product) INT32_MAX
#define WHOLE_BYTES 1
#define TILE_TOKENS 6
LT_INLINE __m256i dot4_half(__m256i sums, __m256i w, i8x4 a) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sums, w, a);
#else
    return _mm256_dpbusd_epi32(sums, w, a);
#endif
}
LT_INLINE narrow dot4(narrow sums, u8x64 w, i8x4 a) {
    return (narrow){dot4_half(sums.a, w.a, a), dot4_half(sums.b, w.b, a)};
}
LT_INLINE i32x16 widen(i32x16 total, narrow sums) { return iadd(total, sums); }
#else /* vpmaddubsw: sums of pairs in 16 bits */
#define SAFE_STEPS(product) (32767 / (2 * (product)))
#define WHOLE_BYTES 0
#define TILE_TOKENS 3
LT_INLINE narrow dot4(narrow sums, u8x64 w, i8x4 a) {
    return (narrow){_mm256_add_epi16(sums.a, _mm256_maddubs_epi16(w.a, a)),
                    _mm256_add_epi16(sums.b, _mm256_maddubs_epi16(w.b, a))};
}
LT_INLINE i32x16 widen(i32x16 total, narrow sums) {
    const __m256i one = _mm256_set1_epi16(1);
    return iadd(total, (i32x16){_mm256_madd_epi16(sums.a, one), _mm256_madd_epi16(sums.b, one)});
}
#endif
LT_INLINE narrow dot4at(narrow sums, u8x64 w, const int8_t *p) { return dot4(sums, w, i8load4(p)); }
LT_INLINE f32x16 vfrom_i32(i32x16 x) { return (f32x16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
LT_INLINE i32x16 vto_i32(f32x16 x) { return (i32x16){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
LT_INLINE void istore_i8(int8_t *p, const i32x16 x[4]) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < 4; i += 2) {
        const __m256i first = _mm256_packs_epi32(x[i].a, x[i].b), second = _mm256_packs_epi32(x[i + 1].a, x[i + 1].b);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(first, second), order);
        _mm256_storeu_si256((__m256i *)(p + 16 * i), bytes);
    }
}
LT_INLINE void isplit(int8_t *hi, int8_t *lo, const i32x16 x[4]) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < 4; i += 2) {
        __m256i high[2], low[2];
        for (int k = 0; k < 2; k++) {
            const __m256i words = _mm256_packs_epi32(x[i + k].a, x[i + k].b);
            high[k] = _mm256_srai_epi16(_mm256_add_epi16(words, _mm256_set1_epi16(64)), 7);
            low[k] = _mm256_sub_epi16(words, _mm256_slli_epi16(high[k], 7));
        }
        const __m256i his = _mm256_packs_epi16(high[0], high[1]), los = _mm256_packs_epi16(low[0], low[1]);
        _mm256_storeu_si256((__m256i *)(hi + 16 * i), _mm256_permutevar8x32_epi32(his, order));
        _mm256_storeu_si256((__m256i *)(lo + 16 * i), _mm256_permutevar8x32_epi32(los, order));
    }
}
LT_INLINE __m256i add_pairs(__m256i x, __m256i y) { /* (x0 + x2, y0 + y2, x1 + x3, y1 + y3) of both halves */
    return _mm256_add_epi32(_mm256_unpacklo_epi32(x, y), _mm256_unpackhi_epi32(x, y));
}
LT_INLINE void isums(int32_t *p, const i32x16 x[4]) {
    __m256i half[4];
    for (int i = 0; i < 4; i++) half[i] = _mm256_add_epi32(x[i].a, x[i].b);
    const __m256i all = add_pairs(add_pairs(half[0], half[2]), add_pairs(half[1], half[3]));
    _mm_storeu_si128((__m128i *)p, _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}

#elif defined(__aarch64__) && !defined(LT_PLAIN)
#include <arm_neon.h>

typedef struct {
    uint8x16_t q[4];
} u8x64; /* four rows each */
typedef struct {
    int32x4_t q[4];
} i32x16;
#define LT_QUARTERS(type, expression)                                                                           \
    type r;                                                                                                     \
    for (int q = 0; q < 4; q++) r.q[q] = expression;                                                            \
    return r
#define IN_PLACE LT_SDOT
#define LAST_SHIFTED LT_SDOT
#define SIGNED_WEIGHTS 1
#define WHOLE_BYTES LT_SDOT
#define TILE_BLOCKS 1
#define CHAINS 1
#define NEGATIVE_BITS 1

LT_INLINE u8x64 u8load(const uint8_t *p) { LT_QUARTERS(u8x64, vld1q_u8(p + 16 * q)); }
LT_INLINE void u8store(uint8_t *p, u8x64 v) {
    for (int q = 0; q < 4; q++) vst1q_u8(p + 16 * q, v.q[q]);
}
LT_INLINE u8x64 u8or(u8x64 v, u8x64 w) { LT_QUARTERS(u8x64, vorrq_u8(v.q[q], w.q[q])); }
LT_INLINE uint8x16_t shift_right(uint8x16_t v, int n) { return v >> vdupq_n_u8((uint8_t)n); }
LT_INLINE u8x64 u8down(u8x64 v, int width, int i) {
    const uint8x16_t mask = vdupq_n_u8((uint8_t)((1 << width) - 1));
    if (i == 0) {
        LT_QUARTERS(u8x64, vandq_u8(v.q[q], mask));
    }
    if (width * (i + 1) == 8) {
        LT_QUARTERS(u8x64, shift_right(v.q[q], width * i));
    }
    LT_QUARTERS(u8x64, vandq_u8(shift_right(v.q[q], width * i), mask));
}
LT_INLINE u8x64 u8down4(u8x64 v) { return u8down(v, 4, 1); }
LT_INLINE u8x64 u8up(u8x64 v, int bits) { LT_QUARTERS(u8x64, v.q[q] << vdupq_n_u8((uint8_t)bits)); }
LT_INLINE u8x64 u8bit(u8x64 v, int i) { LT_QUARTERS(u8x64, vtstq_u8(v.q[q], vdupq_n_u8((uint8_t)(1 << i)))); }
LT_INLINE int8x16_t broadcast4(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}
typedef uint8x16_t u8x16;
LT_INLINE u8x16 u8table(const uint8_t *p) { return vld1q_u8(p); }
LT_INLINE u8x64 u8lookup(u8x16 table, u8x64 i) { LT_QUARTERS(u8x64, vqtbl1q_u8(table, i.q[q])); }
LT_INLINE u8x64 u8add(u8x64 v, u8x64 w) { LT_QUARTERS(u8x64, vaddq_u8(v.q[q], w.q[q])); }
LT_INLINE u8x64 u8signed(u8x64 v) { LT_QUARTERS(u8x64, veorq_u8(v.q[q], vdupq_n_u8(0x80))); }
LT_INLINE u8x64 u8fraction(u8x64 v) { return v; }
LT_INLINE u8x64 u8trit(u8x64 v) { /* a comparison gives -1 for true */
    LT_QUARTERS(u8x64, vsubq_u8(vcltq_u8(v.q[q], vdupq_n_u8(86)), vcgtq_u8(v.q[q], vdupq_n_u8(170))));
}
LT_INLINE u8x64 u8times3(u8x64 v) {
#ifdef __clang__
    LT_QUARTERS(u8x64, vmulq_u8(v.q[q], vdupq_n_u8(3)));
#else /* gcc would make two instructions of it, a shift and an addition */
    u8x64 r;
    for (int q = 0; q < 4; q++) __asm__("mul %0.16b, %1.16b, %2.16b" : "=w"(r.q[q]) : "w"(v.q[q]), "w"(vdupq_n_u8(3)));
    return r;
#endif
}
LT_INLINE i32x16 izero(void) { LT_QUARTERS(i32x16, vdupq_n_s32(0)); }
LT_INLINE i32x16 iset1(int32_t x) { LT_QUARTERS(i32x16, vdupq_n_s32(x)); }
LT_INLINE i32x16 iload(const int32_t *p) { LT_QUARTERS(i32x16, vld1q_s32(p + 4 * q)); }
LT_INLINE void istore(int32_t *p, i32x16 x) {
    for (int q = 0; q < 4; q++) vst1q_s32(p + 4 * q, x.q[q]);
}
LT_INLINE i32x16 isub(i32x16 x, i32x16 y) { LT_QUARTERS(i32x16, vsubq_s32(x.q[q], y.q[q])); }
LT_INLINE i32x16 iadd(i32x16 x, i32x16 y) { LT_QUARTERS(i32x16, vaddq_s32(x.q[q], y.q[q])); }
LT_INLINE i32x16 ishl(i32x16 x, int n) { LT_QUARTERS(i32x16, x.q[q] << vdupq_n_s32(n)); }
LT_INLINE i32x16 ishr(i32x16 x, int n) { LT_QUARTERS(i32x16, x.q[q] >> vdupq_n_s32(n)); }
#ifdef __ARM_FEATURE_DOTPROD
#define LT_SDOT 1
#define SAFE_STEPS(product) INT32_MAX
#define TILE_TOKENS 4
#define SPAN 4 /* rows of codes are padded with 0 to a multiple of it */
typedef i32x16 narrow;
typedef struct {
    int8x16_t codes;
    int lane; /* which four of them */
} i8x4;
typedef struct {
    int8x16_t q[5];
} i8run;
LT_INLINE u8x64 u8field(u8x64 v, int width, int i) {
    if (width == 1) return u8bit(v, i);
    if (width * (i + 1) == 8) return u8down(v, width, i);
    const uint8x16_t mask = vdupq_n_u8((uint8_t)(((1 << width) - 1) << (width * i)));
    LT_QUARTERS(u8x64, vandq_u8(v.q[q], mask));
}
LT_INLINE narrow nzero(void) { return izero(); }
LT_INLINE i8x4 i8load4(const int8_t *p) { return (i8x4){broadcast4(p), 0}; }
LT_INLINE i8run i8load(const int8_t *p, int steps) {
    i8run run;
    for (int i = 0; i < (steps + 3) / 4; i++) run.q[i] = vld1q_s8(p + 16 * i);
    return run;
}
LT_INLINE i8x4 i8step(i8run run, int i) { return (i8x4){run.q[i / 4], i % 4}; }
#ifdef __clang__
#define LT_DOT(lane) LT_QUARTERS(narrow, vdotq_laneq_s32(sums.q[q], vreinterpretq_s8_u8(w.q[q]), a.codes, lane))
#else
#define LT_DOT(lane)                                                                                            \
    for (int q = 0; q < 4; q++)                                                                                 \
        __asm__("sdot %0.4s, %1.16b, %2.4b[" #lane "]" : "+w"(sums.q[q]) : "w"(w.q[q]), "w"(a.codes));          \
    return sums
#endif
LT_INLINE narrow dot4(narrow sums, u8x64 w, i8x4 a) {
    switch (a.lane) {
    case 0: {
        LT_DOT(0);
    }
    case 1: {
        LT_DOT(1);
    }
    case 2: {
        LT_DOT(2);
    }
    default: {
        LT_DOT(3);
    }
    }
}
LT_INLINE narrow dot4of(narrow sums, u8x64 w, i8run run, int i) { return dot4(sums, w, i8step(run, i)); }
LT_INLINE narrow dot4at(narrow sums, u8x64 w, const int8_t *p) { return dot4(sums, w, i8load4(p)); }
/* p, once the sums are there: or gcc loads more weights ahead than there are registers for. */
LT_INLINE const uint8_t *after(const uint8_t *p, narrow sums) {
    __asm__("" : "+r"(p) : "w"(sums.q[0]));
    return p;
}
LT_INLINE i32x16 widen(i32x16 total, narrow sums) { return iadd(total, sums); }
#ifdef __ARM_FEATURE_MATMUL_INT8
#define PAIRED 1
typedef int8x16_t i8pair; /* 8 activations each of two tokens */
LT_INLINE void i8load_pairs(const int8_t *p, int64_t stride, i8pair pairs[2]) {
    const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(p)), b = vreinterpretq_s64_s8(vld1q_s8(p + stride));
    pairs[0] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
    pairs[1] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
}
LT_INLINE uint8x16_t row_pair(uint8x16_t v, uint8x16_t w, int second) {
    const uint32x4_t a = vreinterpretq_u32_u8(v), b = vreinterpretq_u32_u8(w);
    return vreinterpretq_u8_u32(second ? vzip2q_u32(a, b) : vzip1q_u32(a, b));
}
LT_INLINE void u8pair(uint8_t *first, uint8_t *second) {
    const u8x64 v = u8load(first), w = u8load(second);
    for (int q = 0; q < 4; q++) {
        vst1q_u8(first + 16 * q, row_pair(v.q[q / 2], w.q[q / 2], q % 2));
        vst1q_u8(second + 16 * q, row_pair(v.q[2 + q / 2], w.q[2 + q / 2], q % 2));
    }
}
LT_INLINE narrow dot8(narrow sums, u8x64 w, i8pair a) { /* 2 rows times 2 tokens in every quarter */
#ifdef __clang__
    LT_QUARTERS(narrow, vmmlaq_s32(sums.q[q], vreinterpretq_s8_u8(w.q[q]), a));
#else
    for (int q = 0; q < 4; q++) __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(sums.q[q]) : "w"(w.q[q]), "w"(a));
    return sums;
#endif
}
LT_INLINE void unpair(narrow *first, narrow *second) {
    const narrow v = *first, w = *second;
    for (int h = 0; h < 2; h++) {
        first->q[h] = vuzp1q_s32(v.q[2 * h], v.q[2 * h + 1]);
        second->q[h] = vuzp2q_s32(v.q[2 * h], v.q[2 * h + 1]);
        first->q[2 + h] = vuzp1q_s32(w.q[2 * h], w.q[2 * h + 1]);
        second->q[2 + h] = vuzp2q_s32(w.q[2 * h], w.q[2 * h + 1]);
    }
}
#endif
#else /* products added up in 16 bits */
#define LT_SDOT 0
#define SAFE_STEPS(product) (32767 / (product))
#define TILE_TOKENS 3
typedef struct {
    int16x8_t low[4], high[4]; /* two rows each */
} narrow;
typedef int8x16_t i8x4;
LT_INLINE i8x4 i8load4(const int8_t *p) { return broadcast4(p); }
LT_INLINE u8x64 u8field(u8x64 v, int width, int i) { return width == 1 ? u8bit(v, i) : u8down(v, width, i); }
LT_INLINE narrow nzero(void) {
    narrow r;
    for (int q = 0; q < 4; q++) r.low[q] = r.high[q] = vdupq_n_s16(0);
    return r;
}
LT_INLINE narrow dot4(narrow sums, u8x64 w, i8x4 a) {
    for (int q = 0; q < 4; q++) {
        const int8x16_t v = vreinterpretq_s8_u8(w.q[q]);
        sums.low[q] = vmlal_s8(sums.low[q], vget_low_s8(v), vget_low_s8(a));
        sums.high[q] = vmlal_high_s8(sums.high[q], v, a);
    }
    return sums;
}
LT_INLINE i32x16 widen(i32x16 total, narrow sums) {
    for (int q = 0; q < 4; q++) {
        const int32x4_t low = vpaddlq_s16(sums.low[q]), high = vpaddlq_s16(sums.high[q]);
        total.q[q] = vaddq_s32(total.q[q], vpaddq_s32(low, high));
    }
    return total;
}
LT_INLINE narrow dot4at(narrow sums, u8x64 w, const int8_t *p) { return dot4(sums, w, i8load4(p)); }
#endif
LT_INLINE f32x16 vfrom_i32(i32x16 x) {
    return (f32x16){{vcvtq_f32_s32(x.q[0]), vcvtq_f32_s32(x.q[1]), vcvtq_f32_s32(x.q[2]), vcvtq_f32_s32(x.q[3])}};
}
LT_INLINE i32x16 vto_i32(f32x16 x) { LT_QUARTERS(i32x16, vcvtnq_s32_f32(x.q[q])); }
LT_INLINE void istore_i8(int8_t *p, const i32x16 x[4]) {
    for (int i = 0; i < 4; i++, p += 16) {
        const int16x8_t low = vcombine_s16(vmovn_s32(x[i].q[0]), vmovn_s32(x[i].q[1]));
        const int16x8_t high = vcombine_s16(vmovn_s32(x[i].q[2]), vmovn_s32(x[i].q[3]));
        vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
}
LT_INLINE void isplit(int8_t *hi, int8_t *lo, const i32x16 x[4]) {
    for (int i = 0; i < 8; i++, hi += 8, lo += 8) {
        const int16x8_t words = vcombine_s16(vmovn_s32(x[i / 2].q[i % 2 * 2]), vmovn_s32(x[i / 2].q[i % 2 * 2 + 1]));
        const int16x8_t high = vrshrq_n_s16(words, 7); /* rounded: (words + 64) >> 7 */
        vst1_s8(hi, vmovn_s16(high));
        vst1_s8(lo, vmovn_s16(vsubq_s16(words, vshlq_n_s16(high, 7))));
    }
}
LT_INLINE void isums(int32_t *p, const i32x16 x[4]) {
    for (int i = 0; i < 4; i++)
        p[i] = vaddvq_s32(vaddq_s32(vaddq_s32(x[i].q[0], x[i].q[1]), vaddq_s32(x[i].q[2], x[i].q[3])));
}

#else

typedef struct {
    uint8_t b[64];
} u8x64;
typedef struct {
    int8_t b[4];
} i8x4;
typedef struct {
    int32_t i[16];
} i32x16;
typedef i32x16 narrow;
#define IN_PLACE 0
#define LAST_SHIFTED 0
#define SIGNED_WEIGHTS 0
#define WHOLE_BYTES 0
#define SAFE_STEPS(product) INT32_MAX
#define TILE_TOKENS 4
#define TILE_BLOCKS 1

LT_INLINE u8x64 u8load(const uint8_t *p) {
    u8x64 v;
    memcpy(v.b, p, sizeof v.b);
    return v;
}
LT_INLINE void u8store(uint8_t *p, u8x64 v) { memcpy(p, v.b, sizeof v.b); }
LT_INLINE u8x64 u8or(u8x64 v, u8x64 w) {
    for (int k = 0; k < 64; k++) v.b[k] |= w.b[k];
    return v;
}
LT_INLINE u8x64 u8down(u8x64 v, int width, int i) {
    for (int k = 0; k < 64; k++) v.b[k] = (uint8_t)(v.b[k] >> (width * i) & ((1 << width) - 1));
    return v;
}
LT_INLINE u8x64 u8field(u8x64 v, int width, int i) { return u8down(v, width, i); }
LT_INLINE u8x64 u8down4(u8x64 v) { return u8down(v, 4, 1); }
LT_INLINE u8x64 u8up(u8x64 v, int bits) {
    for (int k = 0; k < 64; k++) v.b[k] = (uint8_t)(v.b[k] << bits);
    return v;
}
typedef struct {
    uint8_t b[16];
} u8x16;
LT_INLINE u8x16 u8table(const uint8_t *p) {
    u8x16 t;
    memcpy(t.b, p, sizeof t.b);
    return t;
}
LT_INLINE u8x64 u8lookup(u8x16 table, u8x64 i) {
    for (int k = 0; k < 64; k++) i.b[k] = table.b[i.b[k]];
    return i;
}
LT_INLINE u8x64 u8add(u8x64 v, u8x64 w) {
    for (int k = 0; k < 64; k++) v.b[k] = (uint8_t)(v.b[k] + w.b[k]);
    return v;
}
LT_INLINE u8x64 u8signed(u8x64 v) {
    for (int k = 0; k < 64; k++) v.b[k] ^= 0x80;
    return v;
}
LT_INLINE u8x64 u8fraction(u8x64 v) { return u8signed(v); }
LT_INLINE u8x64 u8times3(u8x64 v) { return u8add(u8add(v, v), v); }
LT_INLINE u8x64 u8trit(u8x64 v) {
    for (int k = 0; k < 64; k++) v.b[k] = (uint8_t)(((int8_t)v.b[k] > -43) + ((int8_t)v.b[k] > 42));
    return v;
}
LT_INLINE i8x4 i8load4(const int8_t *p) {
    i8x4 a;
    memcpy(a.b, p, sizeof a.b);
    return a;
}
LT_INLINE i32x16 izero(void) { return (i32x16){{0}}; }
LT_INLINE i32x16 iset1(int32_t x) {
    i32x16 r;
    for (int i = 0; i < 16; i++) r.i[i] = x;
    return r;
}
LT_INLINE i32x16 iload(const int32_t *p) {
    i32x16 x;
    memcpy(x.i, p, sizeof x.i);
    return x;
}
LT_INLINE void istore(int32_t *p, i32x16 x) { memcpy(p, x.i, sizeof x.i); }
LT_INLINE i32x16 isub(i32x16 x, i32x16 y) {
    for (int r = 0; r < 16; r++) x.i[r] -= y.i[r];
    return x;
}
LT_INLINE i32x16 iadd(i32x16 x, i32x16 y) {
    for (int r = 0; r < 16; r++) x.i[r] += y.i[r];
    return x;
}
LT_INLINE i32x16 ishl(i32x16 x, int n) {
    for (int r = 0; r < 16; r++) x.i[r] = (int32_t)((uint32_t)x.i[r] << n);
    return x;
}
LT_INLINE i32x16 ishr(i32x16 x, int n) {
    for (int r = 0; r < 16; r++) x.i[r] >>= n;
    return x;
}
LT_INLINE narrow nzero(void) { return izero(); }
LT_INLINE narrow dot4(narrow sums, u8x64 w, i8x4 a) {
    for (int r = 0; r < 16; r++)
        for (int b = 0; b < 4; b++) sums.i[r] += w.b[4 * r + b] * a.b[b];
    return sums;
}
LT_INLINE narrow dot4at(narrow sums, u8x64 w, const int8_t *p) { return dot4(sums, w, i8load4(p)); }
LT_INLINE i32x16 widen(i32x16 total, narrow sums) { return iadd(total, sums); }
LT_INLINE f32x16 vfrom_i32(i32x16 x) {
    f32x16 r;
    for (int i = 0; i < 16; i++) r.f[i] = (float)x.i[i];
    return r;
}
LT_INLINE i32x16 vto_i32(f32x16 x) {
    i32x16 r;
    for (int i = 0; i < 16; i++) r.i[i] = (int32_t)rintf(x.f[i]);
    return r;
}
LT_INLINE void istore_i8(int8_t *p, const i32x16 x[4]) {
    for (int i = 0; i < 64; i++) p[i] = (int8_t)x[i / 16].i[i % 16];
}
LT_INLINE void isplit(int8_t *hi, int8_t *lo, const i32x16 x[4]) {
    for (int i = 0; i < 64; i++) {
        const int32_t whole = x[i / 16].i[i % 16], high = (whole + 64) >> 7;
        hi[i] = (int8_t)high;
        lo[i] = (int8_t)(whole - high * 128);
    }
}
LT_INLINE void isums(int32_t *p, const i32x16 x[4]) {
    for (int i = 0; i < 4; i++) {
        p[i] = 0;
        for (int k = 0; k < 16; k++) p[i] += x[i].i[k];
    }
}
#endif

#ifndef STREAMS
#define STREAMS 1
#endif
#ifndef AT_ONCE
#define AT_ONCE 1
#define FEW_TOKENS 1
#endif
#ifndef NEGATIVE_BITS
#define CHAINS 8
#define NEGATIVE_BITS 0
#endif
#ifndef PAIRED
#define PAIRED 0
#endif
#ifndef AMX
#define AMX 0
#endif
#ifndef SPAN
#define SPAN 1
typedef const int8_t *i8run;
LT_INLINE i8run i8load(const int8_t *p, int steps) {
    (void)steps;
    return p;
}
LT_INLINE i8x4 i8step(i8run run, int i) { return i8load4(run + 4 * i); }
LT_INLINE narrow dot4of(narrow sums, u8x64 w, i8run run, int i) { return dot4at(sums, w, run + 4 * i); }
#endif

/* The codes of n <= AT_ONCE tokens, `apart` bytes from one to the next. */
typedef struct {
    const int8_t *codes;
    int64_t apart;
    int n;
} few;

LT_INLINE few few_from(few x, int64_t column) { return (few){x.codes + column, x.apart, x.n}; }
LT_INLINE i8run few_load(few x, int t, int steps) { return i8load(x.codes + t * x.apart, steps); }
