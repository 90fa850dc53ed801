/* attention of float caches. */
#include "kv_cache.h"

enum {
#if defined(LT_PLAIN)
    ABREAST = 1, BLOCKS = 1, /* queries and vectors of keys or values at a time */
#elif defined(__AVX512F__)
    ABREAST = 8, BLOCKS = 2, /* 16 sums of 32 registers */
#else
    ABREAST = 4, BLOCKS = 1, /* 4 sums of 8 registers */
#endif
};

#include "attention_batch.h"

enum { Q_STRIDE = WIDEST + LANES }; /* floats between queries: no multiple of 1 KiB, which would share few lines of L1 */

struct queries {
    _Alignas(64) float x[QUERIES * Q_STRIDE];
};

static void take_query(queries *q, int32_t j, const float *from, int32_t n, int32_t columns) {
    float *to = q->x + j * Q_STRIDE;
    memcpy(to, from, (size_t)n * sizeof *to);
    memset(to + n, 0, (size_t)(columns - n) * sizeof *to);
}

/* score[j][lane] = q_j . k, for the positions of `blocks` blocks, from `at` on. Asks for the keys behind them. */
static inline __attribute__((always_inline)) void score_blocks(float (*score)[TILE], const float *q, const kv_head *cache,
                                                               int64_t at, int32_t columns, int queries, int blocks) {
    f32x16 sum[ABREAST][BLOCKS];
    const int64_t block_bytes = (int64_t)columns * KV_BYTES;
    const uint8_t *k = cache->keys.codes + at / LANES * block_bytes;
    for (int j = 0; j < queries; j++)
        for (int b = 0; b < blocks; b++) sum[j][b] = vset1(0);
    for (int32_t c = 0; c < columns; c++) {
        f32x16 codes[BLOCKS];
        for (int b = 0; b < blocks; b++) {
            const int64_t offset = b * block_bytes + (int64_t)c * KV_BYTES;
            codes[b] = kv_load(k + offset);
            if (queries <= FEW) __builtin_prefetch(k + offset + BLOCKS * block_bytes);
        }
        for (int j = 0; j < queries; j++)
            for (int b = 0; b < blocks; b++) sum[j][b] = vfma(vset1(q[j * Q_STRIDE + c]), codes[b], sum[j][b]);
    }
    for (int j = 0; j < queries; j++)
        for (int b = 0; b < blocks; b++) vstore(score[j] + b * LANES, sum[j][b]);
}

/* y_j += sum of weight[j][t] * v[t] for begin <= t < end, for `width` vectors of columns. ahead: bytes to the values that
 * will be wanted next. */
static inline __attribute__((always_inline)) void blend_columns(float *const *y, int32_t at, const float *weight,
                                                                const uint8_t *v, int64_t stride, int64_t ahead,
                                                                int32_t begin, int32_t end, int queries, int width) {
    f32x16 sum[ABREAST][BLOCKS];
    for (int j = 0; j < queries; j++)
        for (int w = 0; w < width; w++) sum[j][w] = vload(y[j] + at + w * 16);
    for (int32_t t = begin; t < end; t++) {
        f32x16 codes[BLOCKS];
        for (int w = 0; w < width; w++) {
            codes[w] = kv_load(v + t * stride + w * KV_BYTES);
            if (queries <= FEW) __builtin_prefetch(v + t * stride + w * KV_BYTES + ahead);
        }
        for (int j = 0; j < queries; j++)
            for (int w = 0; w < width; w++) sum[j][w] = vfma(vset1(weight[j * TILE + t]), codes[w], sum[j][w]);
    }
    for (int j = 0; j < queries; j++)
        for (int w = 0; w < width; w++) vstore(y[j] + at + w * 16, sum[j][w]);
}

static void score_tile(const batch *s, scores score, const kv_head *cache, int64_t at, int32_t columns) {
    const int32_t blocks = lt_ceil_div(s->seen[s->count - 1], LANES);
    for (int32_t b = 0; b < blocks; b += BLOCKS) /* each BLOCKS stay in L1 for all queries */
        for (int32_t j = 0, m; j < s->count; j += m) {
            float(*to)[TILE] = (float(*)[TILE])(score[j] + b * LANES);
            const float *q = s->q->x + j * Q_STRIDE;
            m = abreast(s->count - j);
#define ALL_BLOCKS(queries) score_blocks(to, q, cache, at + b * LANES, columns, queries, BLOCKS)
#define LAST_BLOCK(queries) score_blocks(to, q, cache, at + b * LANES, columns, queries, 1)
            if (BLOCKS == 1 || b + BLOCKS <= blocks) AT_A_TIME(m, ALL_BLOCKS)
            else AT_A_TIME(m, LAST_BLOCK)
        }
}

/* Positions begin <= t < end. Some queries see what the first of them does; what the others see beyond that is added one
 * by one. */
static inline __attribute__((always_inline)) void blend_vectors(const batch *s, scores weight, const uint8_t *v,
                                                                int64_t stride, int32_t at, int32_t begin, int32_t end,
                                                                int width) {
    const int64_t ahead = (end - begin) * stride;
    for (int32_t j = 0, m; j < s->count; j += m) {
        m = abreast(s->count - j);
        const int32_t all = lt_min(end, s->seen[j]);
#define BLEND(queries) blend_columns(s->y + j, at, weight[j], v, stride, ahead, begin, all, queries, width)
        if (all > begin) AT_A_TIME(m, BLEND)
        for (int32_t i = j; i < j + m; i++) {
            const int32_t first = lt_max(begin, s->seen[j]), last = lt_min(end, s->seen[i]);
            if (last > first) blend_columns(s->y + i, at, weight[i], v, stride, ahead, first, last, 1, width);
        }
    }
}

static void blend_tile(const batch *s, const slab *of, scores weight, const float *keep, int64_t at) {
    const int64_t stride = kv_row_bytes(of->columns);
    const uint8_t *v = of->cache->values.codes + at * stride + (int64_t)of->first / 16 * KV_BYTES;
    const int32_t seen = s->seen[s->count - 1];
    const int32_t some = s->count <= FEW ? LANES : TILE; /* positions: memory is read in order, or sums are stored less */
    for (int32_t j = 0; j < s->count; j++)
        for (int32_t i = 0; i < of->vectors * 16; i += 16)
            vstore(s->y[j] + i, vmul(vload(s->y[j] + i), vset1(keep[j])));
    for (int32_t t = 0; t < seen; t += some)
        for (int32_t i = 0, m; i < of->vectors; i += m) {
            m = lt_min(BLOCKS, of->vectors - i);
            const int32_t end = lt_min(t + some, seen);
            if (BLOCKS > 1 && m == BLOCKS) blend_vectors(s, weight, v + i * KV_BYTES, stride, i * 16, t, end, BLOCKS);
            else blend_vectors(s, weight, v + i * KV_BYTES, stride, i * 16, t, end, 1);
        }
}

#include "attention.h"
