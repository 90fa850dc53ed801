/* linear_t5 with 64-byte vectors and vpdpbusd.
 *
 * One token: 10 vpdpbusd and 10 vpaddb for the 320 weights of a vector, and no table: the bytes are the operand.
 * Many tokens: a panel of 32 rows is decoded once to one digit a byte, then multiplied in register tiles. */
#include <immintrin.h>

#include "t5.h"

enum { PREFETCH = 2048 }; /* bytes ahead */

/* sums + the products of unsigned u and signed a, by fours. As assembly for gcc, which keeps the intrinsic's sums in
 * memory as well as in registers once there are many (seen with gcc 12). */
static inline __m512i dot4(__m512i sums, __m512i u, __m512i a) {
#ifdef __clang__
    return _mm512_dpbusd_epi32(sums, u, a);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(u), "v"(a));
    return sums;
#endif
}

static inline __m512i broadcast4(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}

static inline __m512i times3(__m512i u) { return _mm512_add_epi8(_mm512_add_epi8(u, u), u); }

static inline __m512i sum5(const __m512i v[T5_DIGITS]) {
    __m512i a = _mm512_add_epi32(v[0], v[1]), b = _mm512_add_epi32(v[2], v[3]);
    return _mm512_add_epi32(_mm512_add_epi32(a, b), v[4]);
}

/* One block times one token. With unsigned bytes u = f + 128 both sums gain 128 times the codes' sum, so their
 * combination gains 256 times it. */
static void block_times_token(const uint8_t *data, const int8_t *codes, int32_t groups, int32_t code_sum,
                              int32_t sums[T5_ROWS]) {
    __m512i now[T5_DIGITS], next[T5_DIGITS]; /* one chain of sums per digit hides vpdpbusd's latency */
    for (int d = 0; d < T5_DIGITS; d++) now[d] = next[d] = _mm512_setzero_si512();
    for (int32_t g = 0; g < groups; g++) {
        __m512i u = _mm512_loadu_si512(data + (int64_t)g * T5_VECTOR);
        _mm_prefetch((const char *)data + (int64_t)g * T5_VECTOR + PREFETCH, _MM_HINT_T0);
#pragma GCC unroll 5
        for (int d = 0; d < T5_DIGITS; d++) {
            const __m512i a = broadcast4(codes + g * T5_GROUP + d * T5_BYTES);
            now[d] = dot4(now[d], u, a);
            u = times3(u);
            next[d] = dot4(next[d], u, a);
        }
    }
    __m512i total = _mm512_sub_epi32(_mm512_mullo_epi32(sum5(now), _mm512_set1_epi32(3)), sum5(next));
    total = _mm512_sub_epi32(total, _mm512_set1_epi32((int32_t)((uint32_t)code_sum << 8)));
    _mm512_storeu_si512(sums, _mm512_srai_epi32(total, 8));
}

enum {
    CHUNK = 32,                            /* groups decoded at a time: a panel of 20 KiB stays in L1 */
    STEPS = CHUNK * T5_DIGITS,             /* vectors of 4 weights a row in a panel */
    TOKENS = 12,                           /* 2 x 12 sums, 2 vectors of weights: 26 of 32 registers */
    BATCH = 16 * TOKENS,                   /* tokens that share one decoding */
    BLOCKS = T5_BLOCKS_PER_PART,
};

/* The digits as 0, 1, 2, one to a byte: u >= 86 and u >= 171 are the two steps. */
static void decode(const uint8_t *data, int32_t groups, __m512i panel[STEPS][BLOCKS], int block) {
    const __m512i one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2);
    for (int32_t g = 0; g < groups; g++) {
        __m512i u = _mm512_loadu_si512(data + (int64_t)g * T5_VECTOR);
        for (int d = 0; d < T5_DIGITS; d++) {
            const __m512i low = _mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(u, _mm512_set1_epi8(86)), one);
            panel[g * T5_DIGITS + d][block] =
                _mm512_mask_mov_epi8(low, _mm512_cmpge_epu8_mask(u, _mm512_set1_epi8((char)171)), two);
            u = times3(u);
        }
    }
}

static inline __attribute__((always_inline)) void panel_times(const __m512i panel[STEPS][BLOCKS], int32_t steps,
                                                              const int8_t *codes, int64_t stride, int tokens,
                                                              int32_t sums[][BLOCKS][T5_ROWS]) {
    __m512i acc[TOKENS][BLOCKS]; /* in registers, as long as every loop over it is unrolled */
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < BLOCKS; b++) acc[t][b] = _mm512_loadu_si512(sums[t][b]);
    for (int32_t s = 0; s < steps; s++)
#pragma GCC unroll 12
        for (int t = 0; t < tokens; t++) {
            const __m512i a = broadcast4(codes + t * stride + s * T5_BYTES);
#pragma GCC unroll 2
            for (int b = 0; b < BLOCKS; b++) acc[t][b] = dot4(acc[t][b], panel[s][b], a);
        }
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < BLOCKS; b++) _mm512_storeu_si512(sums[t][b], acc[t][b]);
}

/* Up to BATCH tokens times the blocks of one part. */
static void part_times_batch(const lt_op *op, const lt_step *step, const t5_matrix *m, int32_t block, int32_t blocks,
                             int32_t token, int32_t tokens) {
    __m512i panel[STEPS][BLOCKS];
    int32_t sums[BATCH][BLOCKS][T5_ROWS];
    const int64_t stride = op->arg[1].stride;
    memset(panel, 0, sizeof panel);
    memset(sums, 0, (size_t)tokens * sizeof *sums);
    for (int32_t t = 0; t < tokens; t++) /* what will be written: a page of its own each */
        __builtin_prefetch((float *)lt_row(op, step, 0, token + t) + block * T5_ROWS, 1);
    for (int32_t g = 0; g < m->groups; g += CHUNK) {
        const int32_t groups = lt_min(CHUNK, m->groups - g);
        for (int32_t b = 0; b < blocks; b++)
            decode(t5_block(m, block + b) + (int64_t)g * T5_VECTOR, groups, panel, b);
        const int8_t *codes = (const int8_t *)lt_row(op, step, 1, token) + g * T5_GROUP;
        int32_t t = 0;
        for (; t + TOKENS <= tokens; t += TOKENS)
            panel_times(panel, groups * T5_DIGITS, codes + t * stride, stride, TOKENS, sums + t);
        for (; t + 4 <= tokens; t += 4)
            panel_times(panel, groups * T5_DIGITS, codes + t * stride, stride, 4, sums + t);
        for (; t < tokens; t++) panel_times(panel, groups * T5_DIGITS, codes + t * stride, stride, 1, sums + t);
    }
    for (int32_t t = 0; t < tokens; t++) {
        const int32_t code_sum = (int32_t)*(const float *)lt_row(op, step, 3, token + t);
        for (int32_t b = 0; b < blocks; b++) {
            for (int r = 0; r < T5_ROWS; r++) sums[t][b][r] -= code_sum;
            t5_finish(op, step, m, block + b, token + t, sums[t][b]);
        }
    }
}

static void part_times_token(const lt_op *op, const lt_step *step, const t5_matrix *m, int32_t block, int32_t blocks,
                             int32_t token) {
    const int32_t code_sum = (int32_t)*(const float *)lt_row(op, step, 3, token);
    for (int32_t b = block; b < block + blocks; b++) {
        int32_t sums[T5_ROWS];
        block_times_token(t5_block(m, b), lt_row(op, step, 1, token), m->groups, code_sum, sums);
        t5_finish(op, step, m, b, token, sums);
    }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const t5_matrix m = t5_open(op, step);
    const int32_t n_tokens = lt_rows(op, step), n_blocks = t5_blocks(&m);
    for (int32_t part = begin; part < end; part++) {
        const int32_t block = part * BLOCKS, blocks = lt_min(BLOCKS, n_blocks - block);
        if (n_tokens < 4)
            for (int32_t t = 0; t < n_tokens; t++) part_times_token(op, step, &m, block, blocks, t);
        else
            for (int32_t t = 0; t < n_tokens; t += BATCH)
                part_times_batch(op, step, &m, block, blocks, t, lt_min(BATCH, n_tokens - t));
    }
}

LT_KERNEL(linear_t5, t5_units, run);
