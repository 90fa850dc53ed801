/* attention(y, q; layer, heads, kv_heads, head_dim; scale): causal softmax(q k^T * scale) v, grouped queries.
 *
 * One part is one token's queries on one kv head, taken by pairs. Positions come in tiles; softmax is online (Milakov
 * & Gimelshein 2018; Dao et al. 2022), so memory does not grow with the context. Tiles begin at multiples of TILE, and
 * every sum has its own order: a token's result is the same bits whether it came alone or in a batch. */
#include <math.h>

#include "kv_cache.h"

enum { TILE = 64, HEADS = 2 };

static int32_t units(const lt_op *op, const lt_step *step) { return lt_rows(op, step) * op->dim[2]; }

/* Softmax so far, of each head: its largest score, and the sum of e^(score - most). */
typedef struct {
    float most[HEADS], sum[HEADS];
} softmax;

/* score[h][16 block + lane] = q_h . k, for `blocks` blocks of positions from block `first` of the tile */
static inline __attribute__((always_inline)) void score_blocks(float score[HEADS][TILE], const float *q,
                                                               const KV_TYPE *k, int32_t n, int heads, int32_t first,
                                                               int blocks) {
    f32x16 sum[HEADS][2];
    for (int h = 0; h < heads; h++)
        for (int b = 0; b < blocks; b++) sum[h][b] = vset1(0);
    for (int32_t i = 0; i < n; i++)
        for (int b = 0; b < blocks; b++) {
            const f32x16 keys = KV_LOAD(k + ((int64_t)(first + b) * n + i) * LANES);
            for (int h = 0; h < heads; h++) sum[h][b] = vfma(vset1(q[h * n + i]), keys, sum[h][b]);
        }
    for (int h = 0; h < heads; h++)
        for (int b = 0; b < blocks; b++) vstore(score[h] + (first + b) * LANES, sum[h][b]);
}

/* y_h = y_h * keep[h] + sum of weight[h][t] * v[t], for `width` vectors of columns */
static inline __attribute__((always_inline)) void blend_columns(float *y, const float keep[HEADS],
                                                                float weight[HEADS][TILE], const KV_TYPE *v,
                                                                int32_t tile, int32_t n, int heads, int width) {
    f32x16 sum[HEADS][2];
    for (int h = 0; h < heads; h++)
        for (int w = 0; w < width; w++) sum[h][w] = vmul(vload(y + h * n + w * 16), vset1(keep[h]));
    for (int32_t t = 0; t < tile; t++)
        for (int w = 0; w < width; w++) {
            const f32x16 values = KV_LOAD(v + (int64_t)t * n + w * 16);
            for (int h = 0; h < heads; h++) sum[h][w] = vfma(vset1(weight[h][t]), values, sum[h][w]);
        }
    for (int h = 0; h < heads; h++)
        for (int w = 0; w < width; w++) vstore(y + h * n + w * 16, sum[h][w]);
}

/* The same for the columns left over: fewer than a vector. */
static void blend_rest(float *y, const float keep[HEADS], float weight[HEADS][TILE], const KV_TYPE *v, int32_t tile,
                       int32_t n, int heads, int32_t columns) {
    for (int h = 0; h < heads; h++) {
        f32x16 sum = vmul(vloadn(y + h * n, columns), vset1(keep[h]));
        for (int32_t t = 0; t < tile; t++)
            sum = vfma(vset1(weight[h][t]), KV_LOADN(v + (int64_t)t * n, columns), sum);
        vstoren(y + h * n, sum, columns);
    }
}

/* Scores to weights e^(score - most), in place. Returns by what the earlier sums shrink, as `most` has grown. */
static float weigh(softmax *s, int h, float score[TILE], float scale, int32_t tile) {
    for (int32_t t = tile; t < TILE; t++) score[t] = -INFINITY;
    f32x16 most = vset1(s->most[h]);
    for (int32_t t = 0; t < TILE; t += 16) {
        const f32x16 scaled = vmul(vload(score + t), vset1(scale));
        most = vmax(most, scaled);
        vstore(score + t, scaled);
    }
    const float before = s->most[h], now = vhmax(most);
    f32x16 total = vset1(0);
    for (int32_t t = 0; t < TILE; t += 16) { /* beyond the tile: e^-87 in vexp, lost beside the largest, which is 1 */
        const f32x16 weight = vexp(vsub(vload(score + t), vset1(now)));
        vstore(score + t, weight);
        total = vadd(total, weight);
    }
    float keep[16];
    vstore(keep, vexp(vset1(before - now)));
    s->most[h] = now;
    s->sum[h] = s->sum[h] * keep[0] + vsum(total);
    return keep[0];
}

static inline __attribute__((always_inline)) void attend_tile(softmax *s, float *y, const float *q, const KV_TYPE *k,
                                                              const KV_TYPE *v, float scale, int32_t tile, int32_t n,
                                                              int heads) {
    float score[HEADS][TILE], keep[HEADS];
    const int32_t blocks = lt_ceil_div(tile, LANES);
    int32_t b = 0;
    for (; b + 2 <= blocks; b += 2) score_blocks(score, q, k, n, heads, b, 2);
    if (b < blocks) score_blocks(score, q, k, n, heads, b, 1);
    for (int h = 0; h < heads; h++) keep[h] = weigh(s, h, score[h], scale, tile);
    int32_t i = 0;
    for (; i + 32 <= n; i += 32) blend_columns(y + i, keep, score, v + i, tile, n, heads, 2);
    for (; i + 16 <= n; i += 16) blend_columns(y + i, keep, score, v + i, tile, n, heads, 1);
    if (i < n) blend_rest(y + i, keep, score, v + i, tile, n, heads, n - i);
}

static inline __attribute__((always_inline)) void attend(float *y, const float *q, const kv_head *cache, float scale,
                                                         int32_t positions, int32_t n, int heads) {
    softmax s = {{-INFINITY, -INFINITY}, {0, 0}};
    memset(y, 0, (size_t)(heads * n) * sizeof *y);
    for (int32_t at = 0; at < positions; at += TILE)
        attend_tile(&s, y, q, cache->keys + (int64_t)at * n, cache->values + (int64_t)at * n, scale,
                    lt_min(TILE, positions - at), n, heads);
    for (int h = 0; h < heads; h++)
        for (int32_t i = 0; i < n; i++) y[h * n + i] /= s.sum[h];
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t layer = op->dim[0], kv_heads = op->dim[2], n = op->dim[3], group = op->dim[1] / kv_heads;
    for (int32_t part = begin; part < end; part++) {
        const int32_t row = part / kv_heads, kv = part % kv_heads, positions = step->pos + row + 1;
        const kv_head cache = kv_head_at(step, layer, kv_heads, kv, n);
        float *y = (float *)lt_row(op, step, 0, row) + kv * group * n;
        const float *q = (const float *)lt_row(op, step, 1, row) + kv * group * n;
        int32_t h = 0;
        for (; h + HEADS <= group; h += HEADS) attend(y + h * n, q + h * n, &cache, op->f[0], positions, n, HEADS);
        for (; h < group; h++) attend(y + h * n, q + h * n, &cache, op->f[0], positions, n, 1);
    }
}
