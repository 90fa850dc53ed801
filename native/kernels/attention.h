/* attention(y, q; layer, heads, kv_heads, head_dim; scale): causal softmax(q k^T * scale) v, grouped queries.
 *
 * One part is one token's queries on one kv head. Positions come in tiles; softmax is online (Milakov & Gimelshein
 * 2018; Dao et al. 2022), so memory does not grow with the context. Tiles begin at multiples of TILE: the result for
 * a token is the same bits whether it came alone or in a batch. */
#include <math.h>

#include "kv_cache.h"

enum { TILE = 64 };

static int32_t units(const lt_op *op, const lt_step *step) { return lt_rows(op, step) * op->dim[2]; }

static inline float dot(const float *q, const KV_TYPE *k, int32_t n) {
    f32x16 acc = vset1(0);
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) acc = vfma(vload(q + i), KV_LOAD(k + i), acc);
    if (i < n) acc = vfma(vloadn(q + i, n - i), KV_LOADN(k + i, n - i), acc);
    return vsum(acc);
}

/* y = y * keep + sum of weight[t] * v[t] over the tile */
static void blend(float *y, float keep, const float *weight, const KV_TYPE *v, int32_t tile, int32_t n) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) {
        f32x16 acc = vmul(vload(y + i), vset1(keep));
        for (int32_t t = 0; t < tile; t++) acc = vfma(vset1(weight[t]), KV_LOAD(v + t * n + i), acc);
        vstore(y + i, acc);
    }
    if (i < n) {
        f32x16 acc = vmul(vloadn(y + i, n - i), vset1(keep));
        for (int32_t t = 0; t < tile; t++) acc = vfma(vset1(weight[t]), KV_LOADN(v + t * n + i, n - i), acc);
        vstoren(y + i, acc, n - i);
    }
}

/* One query's softmax so far: its largest score, and the sum of e^(score - most). */
typedef struct {
    float most, sum;
} softmax;

static void attend_tile(softmax *s, float *y, const float *q, const KV_TYPE *k, const KV_TYPE *v, float scale,
                        int32_t tile, int32_t n) {
    float score[TILE];
    for (int32_t t = 0; t < TILE; t++) score[t] = t < tile ? dot(q, k + t * n, n) * scale : -INFINITY;
    f32x16 tile_most = vload(score);
    for (int32_t t = 16; t < TILE; t += 16) tile_most = vmax(tile_most, vload(score + t));
    const float before = s->most, most = fmaxf(before, vhmax(tile_most));
    f32x16 total = vset1(0);
    for (int32_t t = 0; t < TILE; t += 16) { /* beyond the tile: e^-87 in vexp, lost beside the largest, which is 1 */
        f32x16 weight = vexp(vsub(vload(score + t), vset1(most)));
        vstore(score + t, weight);
        total = vadd(total, weight);
    }
    float kept[16];
    vstore(kept, vexp(vset1(before - most)));
    s->most = most;
    s->sum = s->sum * kept[0] + vsum(total);
    blend(y, kept[0], score, v, tile, n);
}

static void attend(const lt_op *op, const lt_step *step, int32_t row, int32_t kv) {
    const int32_t layer = op->dim[0], heads = op->dim[1], kv_heads = op->dim[2], n = op->dim[3];
    const int32_t group = heads / kv_heads, positions = step->pos + row + 1;
    const kv_head cache = kv_head_at(step, layer, kv_heads, kv, n);
    for (int32_t head = kv * group; head < (kv + 1) * group; head++) {
        float *y = (float *)lt_row(op, step, 0, row) + head * n;
        const float *q = (const float *)lt_row(op, step, 1, row) + head * n;
        softmax s = {-INFINITY, 0};
        memset(y, 0, (size_t)n * sizeof *y);
        for (int32_t at = 0; at < positions; at += TILE)
            attend_tile(&s, y, q, cache.keys + (int64_t)at * n, cache.values + (int64_t)at * n, op->f[0],
                        lt_min(TILE, positions - at), n);
        for (int32_t i = 0; i < n; i++) y[i] /= s.sum;
    }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t kv_heads = op->dim[2];
    for (int32_t part = begin; part < end; part++) attend(op, step, part / kv_heads, part % kv_heads);
}
