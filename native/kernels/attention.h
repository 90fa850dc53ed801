/* attention(y, q; layer, heads, kv_heads, head_dim; scale): causal softmax(q k^T * scale) v, grouped queries.
 *
 * One part is some rows' queries on one kv head: what is loaded of a key or a value serves as many of them as the
 * registers hold. Positions come in tiles; softmax is online (Milakov & Gimelshein 2018; Dao et al. 2022), so memory
 * does not grow with the context. Tiles begin at multiples of TILE, every sum has its own order, and no query's sums
 * see a position behind it: a token's result is the same bits whether it came alone or in a batch. */
#include <math.h>

#include "kv_cache.h"

enum {
    TILE = 64,        /* positions whose scores are held at a time */
    QUERIES = 32,     /* that meet a tile before the next one comes */
    WIDEST = 256,     /* head_dim; wider heads come query by query and WIDEST columns of values at a time */
    Q_STRIDE = WIDEST + LANES, /* floats between queries: no multiple of 1 KiB, which would share few lines of L1 */
#if defined(__AVX512F__) && !defined(LT_PLAIN)
    ABREAST = 8, BLOCKS = 2, /* queries and vectors of keys or values at a time: 16 sums of 32 registers */
#else
    ABREAST = 4, BLOCKS = 1,
#endif
};

/* Some queries on one kv head, in the order of their rows. Softmax so far: the largest score, and the sum of
 * e^(score - most). */
typedef struct {
    int32_t count;
    int32_t positions[QUERIES]; /* that each may see */
    const float *q;             /* Q_STRIDE from one to the next */
    float *y[QUERIES];          /* the columns of the result that are being made */
    float most[QUERIES], sum[QUERIES];
} batch;

typedef float scores[QUERIES][TILE];

static int32_t rows_abreast(const lt_op *op) { /* of one part */
    const int32_t group = op->dim[1] / op->dim[2];
    return group < QUERIES ? QUERIES / group : 1;
}

static int32_t units(const lt_op *op, const lt_step *step) {
    return lt_ceil_div(lt_rows(op, step), rows_abreast(op)) * op->dim[2];
}

/* How many of `left` queries to take at a time: one of the cases of AT_A_TIME. */
static inline int32_t abreast(int32_t left) {
    int32_t n = ABREAST;
    while (n > left) n /= 2;
    return n;
}
#define AT_A_TIME(n, call)                                                                                      \
    switch (n) {                                                                                                \
    case 8: call(ABREAST); break;                                                                               \
    case 4: call(4); break;                                                                                     \
    case 2: call(2); break;                                                                                     \
    default: call(1);                                                                                           \
    }

/* score[j][lane] = q_j . k, for the positions of `blocks` blocks */
static inline __attribute__((always_inline)) void score_blocks(float (*score)[TILE], const float *q, const KV_TYPE *k,
                                                               int32_t n, int queries, int blocks) {
    f32x16 sum[ABREAST][BLOCKS];
    for (int j = 0; j < queries; j++)
        for (int b = 0; b < blocks; b++) sum[j][b] = vset1(0);
    for (int32_t i = 0; i < n; i++) {
        f32x16 keys[BLOCKS];
        for (int b = 0; b < blocks; b++) keys[b] = KV_LOAD(k + ((int64_t)b * n + i) * LANES);
        for (int j = 0; j < queries; j++)
            for (int b = 0; b < blocks; b++) sum[j][b] = vfma(vset1(q[j * Q_STRIDE + i]), keys[b], sum[j][b]);
    }
    for (int j = 0; j < queries; j++)
        for (int b = 0; b < blocks; b++) vstore(score[j] + b * LANES, sum[j][b]);
}

/* y_j = y_j * keep[j] + sum of weight[j][t] * v[t] for begin <= t < end, for `width` vectors of columns */
static inline __attribute__((always_inline)) void blend_columns(float *const *y, int32_t column, const float *keep,
                                                                const float *weight, const KV_TYPE *v, int32_t begin,
                                                                int32_t end, int32_t n, int queries, int width) {
    f32x16 sum[ABREAST][BLOCKS];
    for (int j = 0; j < queries; j++)
        for (int w = 0; w < width; w++) sum[j][w] = vmul(vload(y[j] + column + w * 16), vset1(keep[j]));
    for (int32_t t = begin; t < end; t++) {
        f32x16 values[BLOCKS];
        for (int w = 0; w < width; w++) values[w] = KV_LOAD(v + (int64_t)t * n + w * 16);
        for (int j = 0; j < queries; j++)
            for (int w = 0; w < width; w++) sum[j][w] = vfma(vset1(weight[j * TILE + t]), values[w], sum[j][w]);
    }
    for (int j = 0; j < queries; j++)
        for (int w = 0; w < width; w++) vstore(y[j] + column + w * 16, sum[j][w]);
}

/* The same for one query and the columns left over: fewer than a vector. */
static void blend_rest(float *y, float keep, const float *weight, const KV_TYPE *v, int32_t end, int32_t n,
                       int32_t columns) {
    f32x16 sum = vmul(vloadn(y, columns), vset1(keep));
    for (int32_t t = 0; t < end; t++) sum = vfma(vset1(weight[t]), KV_LOADN(v + (int64_t)t * n, columns), sum);
    vstoren(y, sum, columns);
}

static void score_tile(const batch *s, scores score, const KV_TYPE *k, int32_t seen, int32_t n) {
    const int32_t blocks = lt_ceil_div(seen, LANES);
    for (int32_t b = 0; b < blocks; b += BLOCKS) /* each BLOCKS stay in L1 for all queries */
        for (int32_t j = 0, m; j < s->count; j += m) {
            float(*to)[TILE] = (float(*)[TILE])(score[j] + b * LANES);
            const float *q = s->q + j * Q_STRIDE;
            const KV_TYPE *keys = k + (int64_t)b * n * LANES;
            m = abreast(s->count - j);
#define ALL_BLOCKS(queries) score_blocks(to, q, keys, n, queries, BLOCKS)
#define LAST_BLOCK(queries) score_blocks(to, q, keys, n, queries, 1)
            if (b + BLOCKS <= blocks) AT_A_TIME(m, ALL_BLOCKS)
            else AT_A_TIME(m, LAST_BLOCK)
        }
}

/* Scores to weights e^(score - most), in place, of the positions that each query sees. keep: by what the sums so far
 * shrink, as `most` has grown. */
static void weigh(batch *s, scores score, float keep[QUERIES], const int32_t *seen, float scale) {
    float before[QUERIES];
    memcpy(before, s->most, sizeof before);
    for (int32_t j = 0; j < s->count; j++) {
        if (seen[j] == 0) continue;
        for (int32_t t = seen[j]; t < TILE; t++) score[j][t] = -INFINITY;
        f32x16 most = vset1(s->most[j]);
        for (int32_t t = 0; t < TILE; t += 16) {
            const f32x16 scaled = vmul(vload(score[j] + t), vset1(scale));
            most = vmax(most, scaled);
            vstore(score[j] + t, scaled);
        }
        s->most[j] = vhmax(most);
    }
    for (int32_t j = 0; j < s->count; j += 16)
        vstore(keep + j, vexp(vsub(vload(before + j), vload(s->most + j))));
    for (int32_t j = 0; j < s->count; j++) {
        if (seen[j] == 0) {
            keep[j] = 1;
            continue;
        }
        f32x16 total = vset1(0);
        for (int32_t t = 0; t < TILE; t += 16) { /* unseen: e^-87 in vexp, lost beside the largest, which is 1 */
            const f32x16 weight = vexp(vsub(vload(score[j] + t), vset1(s->most[j])));
            vstore(score[j] + t, weight);
            total = vadd(total, weight);
        }
        s->sum[j] = s->sum[j] * keep[j] + vsum(total);
    }
}

/* A group of queries sees what its first one does; what the others see beyond that is added one by one. */
static inline __attribute__((always_inline)) void blend_tile(const batch *s, scores weight, const float *keep,
                                                             const int32_t *seen, const KV_TYPE *v, int32_t column,
                                                             int32_t n, int width) {
    const float one = 1;
    for (int32_t j = 0, m; j < s->count; j += m) {
        m = abreast(s->count - j);
#define COLUMNS(queries) blend_columns(s->y + j, column, keep + j, weight[j], v + column, 0, seen[j], n, queries, width)
        AT_A_TIME(m, COLUMNS)
        for (int32_t i = j; i < j + m; i++)
            if (seen[i] > seen[j])
                blend_columns(s->y + i, column, &one, weight[i], v + column, seen[j], seen[i], n, 1, width);
    }
}

static void attend_tile(batch *s, const KV_TYPE *k, const KV_TYPE *v, float scale, int32_t at, int32_t n,
                        int32_t columns) {
    scores score;
    float keep[QUERIES];
    int32_t seen[QUERIES], i = 0;
    for (int32_t j = 0; j < s->count; j++) seen[j] = lt_min(TILE, s->positions[j] > at ? s->positions[j] - at : 0);
    score_tile(s, score, k, seen[s->count - 1], n);
    weigh(s, score, keep, seen, scale);
    for (; i + BLOCKS * 16 <= columns; i += BLOCKS * 16) blend_tile(s, score, keep, seen, v, i, n, BLOCKS);
    for (; i + 16 <= columns; i += 16) blend_tile(s, score, keep, seen, v, i, n, 1);
    if (i < columns)
        for (int32_t j = 0; j < s->count; j++) blend_rest(s->y[j] + i, keep[j], score[j], v + i, seen[j], n, columns - i);
}

static void attend(batch *s, const kv_head *cache, float scale, int32_t n, int32_t column, int32_t columns) {
    for (int32_t j = 0; j < s->count; j++) {
        s->most[j] = -INFINITY;
        s->sum[j] = 0;
        memset(s->y[j], 0, (size_t)columns * sizeof *s->y[j]);
    }
    for (int32_t at = 0; at < s->positions[s->count - 1]; at += TILE)
        attend_tile(s, cache->keys + (int64_t)at * n, cache->values + (int64_t)at * n + column, scale, at, n, columns);
    for (int32_t j = 0; j < s->count; j++) {
        const float share = 1 / s->sum[j];
        for (int32_t i = 0; i < columns; i++) s->y[j][i] *= share;
    }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t layer = op->dim[0], kv_heads = op->dim[2], n = op->dim[3], group = op->dim[1] / kv_heads;
    const int32_t rows = lt_rows(op, step), part_rows = rows_abreast(op), tiles = lt_ceil_div(rows, part_rows);
    const int32_t most = n <= WIDEST ? QUERIES : 1;
    float q[QUERIES * Q_STRIDE];
    for (int32_t part = begin; part < end; part++) {
        const int32_t kv = part / tiles, first = part % tiles * part_rows;
        const int32_t queries = lt_min(part_rows, rows - first) * group;
        const kv_head cache = kv_head_at(step, layer, kv_heads, kv, n);
        for (int32_t done = 0; done < queries; done += most) {
            batch s = {.count = lt_min(most, queries - done), .q = q};
            for (int32_t column = 0; column < n; column += WIDEST) {
                for (int32_t j = 0; j < s.count; j++) {
                    const int32_t row = first + (done + j) / group, head = kv * group + (done + j) % group;
                    const float *from = (const float *)lt_row(op, step, 1, row) + (int64_t)head * n;
                    if (n <= WIDEST) memcpy(q + j * Q_STRIDE, from, (size_t)n * sizeof *q);
                    else s.q = from;
                    s.positions[j] = step->pos + row + 1;
                    s.y[j] = (float *)lt_row(op, step, 0, row) + (int64_t)head * n + column;
                }
                attend(&s, &cache, op->f[0], n, column, lt_min(WIDEST, n - column));
            }
        }
    }
}
