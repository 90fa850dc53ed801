/* linear_t5 with 32-byte vectors: 8 rows of a block at a time.
 *
 * vpmaddubsw saturates on whole bytes, so each digit is made first, as 0, 1 or 2: pairs then sum to at most
 * 2 * 2 * 127 = 508, and sixteen-bit sums are widened before they can reach 32768. */
#include <immintrin.h>

#include "t5.h"

enum {
    HALF = 32,                                    /* bytes: half a vector */
    HALF_ROWS = 8,
    SAFE = 32767 / (2 * 2 * 127 * T5_DIGITS),     /* groups whose pair sums fit 16 bits */
    TOKENS = 4,
};

static inline __m256i broadcast4(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}

static inline __m256i times3(__m256i f) { return _mm256_add_epi8(_mm256_add_epi8(f, f), f); }

/* The first digit of the fractions f, plus 1. The comparisons give -1 for true. */
static inline __m256i first_digit(__m256i f) {
    const __m256i above = _mm256_cmpgt_epi8(f, _mm256_set1_epi8(42)); /* t = 1 */
    const __m256i not_below = _mm256_cmpgt_epi8(f, _mm256_set1_epi8(-43)); /* t = 0 or 1 */
    return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(above, not_below));
}

static inline __m256i widen(__m256i sums, __m256i pairs) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Half a block times `tokens` tokens, each digit decoded once for all of them. */
static inline __attribute__((always_inline)) void half_times(const uint8_t *data, int32_t groups, const int8_t *codes,
                                                             int64_t stride, int tokens, __m256i total[TOKENS]) {
    for (int t = 0; t < tokens; t++) total[t] = _mm256_setzero_si256();
    for (int32_t g = 0; g < groups;) {
        const int32_t stop = lt_min(g + SAFE, groups);
        __m256i pairs[TOKENS];
        for (int t = 0; t < tokens; t++) pairs[t] = _mm256_setzero_si256();
        for (; g < stop; g++) {
            const __m256i u = _mm256_loadu_si256((const __m256i *)(data + (int64_t)g * T5_VECTOR));
            __m256i f = _mm256_xor_si256(u, _mm256_set1_epi8((char)0x80));
#pragma GCC unroll 5
            for (int d = 0; d < T5_DIGITS; d++) {
                const __m256i digit = first_digit(f);
                for (int t = 0; t < tokens; t++) {
                    const __m256i a = broadcast4(codes + t * stride + g * T5_GROUP + d * T5_BYTES);
                    pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(digit, a));
                }
                f = times3(f);
            }
        }
        for (int t = 0; t < tokens; t++) total[t] = widen(total[t], pairs[t]);
    }
}

static inline __attribute__((always_inline)) void block_times(const lt_op *op, const lt_step *step,
                                                              const t5_matrix *m, int32_t block, int32_t token,
                                                              int tokens) {
    __m256i low[TOKENS], high[TOKENS];
    const int8_t *codes = lt_row(op, step, 1, token);
    half_times(t5_block(m, block), m->groups, codes, op->arg[1].stride, tokens, low);
    half_times(t5_block(m, block) + HALF, m->groups, codes, op->arg[1].stride, tokens, high);
    for (int t = 0; t < tokens; t++) {
        const __m256i code_sum = _mm256_set1_epi32((int32_t)*(const float *)lt_row(op, step, 3, token + t));
        int32_t sums[T5_ROWS];
        _mm256_storeu_si256((__m256i *)sums, _mm256_sub_epi32(low[t], code_sum));
        _mm256_storeu_si256((__m256i *)(sums + HALF_ROWS), _mm256_sub_epi32(high[t], code_sum));
        t5_finish(op, step, m, block, token + t, sums);
    }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const t5_matrix m = t5_open(op, step);
    const int32_t n_tokens = lt_rows(op, step), last = lt_min(end * T5_BLOCKS_PER_PART, t5_blocks(&m));
    for (int32_t block = begin * T5_BLOCKS_PER_PART; block < last; block++) {
        int32_t t = 0;
        for (; t + TOKENS <= n_tokens; t += TOKENS) block_times(op, step, &m, block, t, TOKENS);
        for (; t < n_tokens; t++) block_times(op, step, &m, block, t, 1);
    }
}

LT_KERNEL(linear_t5, t5_units, run);
