/* attention(y, q; layer, heads, kv_heads, head_dim; scale): causal softmax(q k^T * scale) v, grouped queries.
 *
 * One part is some rows' queries on one kv head: what is loaded of a key or a value serves as many of them as the
 * registers hold. Positions come in tiles; softmax is online (Milakov & Gimelshein 2018), so memory does not grow with
 * the context. A step of few rows is cut into spans of positions too, which different threads may take: their results
 * are folded in the spans' order, by whoever finishes last (Dao et al., Flash-Decoding 2023). Longer steps go through
 * the same spans one after another.
 *
 * Tiles and spans begin at multiples of their length, every sum has its own order, and no query's sums see a position
 * behind it: a token's result is the same bits whether it came alone or in a batch, and for any number of threads. */
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
    int32_t seen[QUERIES];      /* of them in the tile at hand */
    const float *q;             /* Q_STRIDE from one to the next */
    float *y[QUERIES];          /* the columns of the result that are being made */
    float most[QUERIES], sum[QUERIES];
} batch;

typedef float scores[QUERIES][TILE];

/* What a span has given one query: the result's columns, its largest score, its sum of weights. */
static float *work_piece(const lt_op *op, const lt_step *step, int32_t row, int32_t head, int32_t span, int32_t spans) {
    float *pieces = (float *)step->space[LT_WORK] + SPLIT_ROWS * op->dim[2];
    return pieces + (((int64_t)row * op->dim[1] + head) * spans + span) * (op->dim[3] + 2);
}

/* How the op is cut into parts: kv heads, times tiles of rows, times spans of positions where there are few rows. */
typedef struct {
    int32_t tile_rows, tiles, spans;
} cuts;

static cuts cut(const lt_op *op, const lt_step *step) {
    const int32_t rows = lt_rows(op, step), group = op->dim[1] / op->dim[2];
    const int32_t tile_rows = group < QUERIES ? QUERIES / group : 1;
    return (cuts){tile_rows, lt_ceil_div(rows, tile_rows),
                  rows <= SPLIT_ROWS ? lt_ceil_div(step->pos + rows, SPAN) : 1};
}

static int32_t units(const lt_op *op, const lt_step *step) {
    const cuts c = cut(op, step);
    return c.tiles * op->dim[2] * c.spans;
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
static void weigh(batch *s, scores score, float keep[QUERIES], float scale) {
    float before[QUERIES];
    memcpy(before, s->most, sizeof before);
    for (int32_t j = 0; j < s->count; j++) {
        if (s->seen[j] == 0) continue;
        for (int32_t t = s->seen[j]; t < TILE; t++) score[j][t] = -INFINITY;
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
        if (s->seen[j] == 0) {
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
                                                             const KV_TYPE *v, int32_t column, int32_t n, int width) {
    const float one = 1;
    for (int32_t j = 0, m; j < s->count; j += m) {
        m = abreast(s->count - j);
#define COLUMNS(queries) blend_columns(s->y + j, column, keep + j, weight[j], v + column, 0, s->seen[j], n, queries, width)
        AT_A_TIME(m, COLUMNS)
        for (int32_t i = j; i < j + m; i++)
            if (s->seen[i] > s->seen[j])
                blend_columns(s->y + i, column, &one, weight[i], v + column, s->seen[j], s->seen[i], n, 1, width);
    }
}

static void attend_tile(batch *s, const KV_TYPE *k, const KV_TYPE *v, float scale, int32_t at, int32_t n,
                        int32_t columns) {
    scores score;
    float keep[QUERIES];
    int32_t i = 0;
    for (int32_t j = 0; j < s->count; j++) s->seen[j] = lt_min(TILE, s->positions[j] > at ? s->positions[j] - at : 0);
    score_tile(s, score, k, s->seen[s->count - 1], n);
    weigh(s, score, keep, scale);
    for (; i + BLOCKS * 16 <= columns; i += BLOCKS * 16) blend_tile(s, score, keep, v, i, n, BLOCKS);
    for (; i + 16 <= columns; i += 16) blend_tile(s, score, keep, v, i, n, 1);
    if (i < columns)
        for (int32_t j = 0; j < s->count; j++) blend_rest(s->y[j] + i, keep[j], score[j], v + i, s->seen[j], n, columns - i);
}

/* One span of positions, from nothing. The softmax of a query that sees none of them stays empty: its sum is 0. */
static void attend_span(batch *s, const kv_head *cache, float scale, int32_t begin, int32_t n, int32_t column,
                        int32_t columns) {
    const int32_t end = lt_min(begin + SPAN, s->positions[s->count - 1]);
    for (int32_t j = 0; j < s->count; j++) {
        s->most[j] = -INFINITY;
        s->sum[j] = 0;
        memset(s->y[j], 0, (size_t)columns * sizeof *s->y[j]);
    }
    for (int32_t at = begin; at < end; at += TILE)
        attend_tile(s, cache->keys + (int64_t)at * n, cache->values + (int64_t)at * n + column, scale, at, n, columns);
}

/* y, most, sum: takes in what the next span has found. */
static void fold(float *y, float *most, float *sum, const float *next, float next_most, float next_sum, int32_t columns) {
    const float now = *most > next_most ? *most : next_most;
    const float shrink = vfirst(vexp(vset1(*most - now))), next_shrink = vfirst(vexp(vset1(next_most - now)));
    int32_t i = 0;
    for (; i + 16 <= columns; i += 16)
        vstore(y + i, vfma(vload(next + i), vset1(next_shrink), vmul(vload(y + i), vset1(shrink))));
    if (i < columns) {
        const f32x16 old = vmul(vloadn(y + i, columns - i), vset1(shrink));
        vstoren(y + i, vfma(vloadn(next + i, columns - i), vset1(next_shrink), old), columns - i);
    }
    *sum = *sum * shrink + next_sum * next_shrink;
    *most = now;
}

static void finish(float *y, float sum, int32_t columns) {
    const float share = 1 / sum;
    for (int32_t i = 0; i < columns; i++) y[i] *= share;
}

/* All positions, span by span. */
static void attend(batch *s, const kv_head *cache, float scale, int32_t n, int32_t column, int32_t columns) {
    attend_span(s, cache, scale, 0, n, column, columns);
    float piece[QUERIES * WIDEST];
    batch next = *s;
    for (int32_t j = 0; j < s->count; j++) next.y[j] = piece + j * columns;
    for (int32_t begin = SPAN; begin < s->positions[s->count - 1]; begin += SPAN) {
        attend_span(&next, cache, scale, begin, n, column, columns);
        for (int32_t j = 0; j < s->count; j++)
            if (s->positions[j] > begin)
                fold(s->y[j], &s->most[j], &s->sum[j], next.y[j], next.most[j], next.sum[j], columns);
    }
    for (int32_t j = 0; j < s->count; j++) finish(s->y[j], s->sum[j], columns);
}

/* The spans' pieces of some rows' queries, all made, to their results. */
static void fold_pieces(const lt_op *op, const lt_step *step, int32_t kv, int32_t first, int32_t rows, int32_t spans) {
    const int32_t heads = op->dim[1], n = op->dim[3], group = heads / op->dim[2];
    for (int32_t row = first; row < first + rows; row++)
        for (int32_t head = kv * group; head < (kv + 1) * group; head++) {
            float *y = (float *)lt_row(op, step, 0, row) + (int64_t)head * n;
            const float *piece = work_piece(op, step, row, head, 0, spans);
            float most = piece[n], sum = piece[n + 1];
            memcpy(y, piece, (size_t)n * sizeof *y);
            for (int32_t begin = SPAN; begin < step->pos + row + 1; begin += SPAN) {
                piece += n + 2;
                fold(y, &most, &sum, piece, piece[n], piece[n + 1], n);
            }
            finish(y, sum, n);
        }
}

/* Some rows' queries on one kv head: all spans, or, of more than one, the one given. */
static void run_part(const lt_op *op, const lt_step *step, int32_t kv, int32_t first, int32_t rows, int32_t span,
                     int32_t spans) {
    const int32_t n = op->dim[3], group = op->dim[1] / op->dim[2], most = n <= WIDEST ? QUERIES : 1;
    const kv_head cache = kv_head_at(step, op->dim[0], op->dim[2], kv, n);
    float q[QUERIES * Q_STRIDE], *piece[QUERIES];
    for (int32_t done = 0; done < rows * group; done += most)
        for (int32_t column = 0; column < n; column += WIDEST) {
            const int32_t columns = lt_min(WIDEST, n - column);
            batch s = {.count = lt_min(most, rows * group - done), .q = q};
            for (int32_t j = 0; j < s.count; j++) {
                const int32_t row = first + (done + j) / group, head = kv * group + (done + j) % group;
                const float *from = (const float *)lt_row(op, step, 1, row) + (int64_t)head * n;
                if (n <= WIDEST) memcpy(q + j * Q_STRIDE, from, (size_t)n * sizeof *q);
                else s.q = from;
                s.positions[j] = step->pos + row + 1;
                piece[j] = spans > 1 ? work_piece(op, step, row, head, span, spans)
                                     : (float *)lt_row(op, step, 0, row) + (int64_t)head * n;
                s.y[j] = piece[j] + column;
            }
            if (spans == 1) {
                attend(&s, &cache, op->f[0], n, column, columns);
                continue;
            }
            attend_span(&s, &cache, op->f[0], span * SPAN, n, column, columns);
            for (int32_t j = 0; j < s.count; j++) {
                piece[j][n] = s.most[j];
                piece[j][n + 1] = s.sum[j];
            }
        }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const cuts c = cut(op, step);
    for (int32_t part = begin; part < end; part++) {
        const int32_t span = part % c.spans, some = part / c.spans, kv = some / c.tiles;
        const int32_t first = some % c.tiles * c.tile_rows, rows = lt_min(c.tile_rows, lt_rows(op, step) - first);
        run_part(op, step, kv, first, rows, span, c.spans);
        int32_t *count = (int32_t *)step->space[LT_WORK] + some;
        if (c.spans > 1 && __atomic_add_fetch(count, 1, __ATOMIC_ACQ_REL) == c.spans) {
            fold_pieces(op, step, kv, first, rows, c.spans); /* whoever comes last: the order of spans is the same */
            *count = 0;
        }
    }
}
