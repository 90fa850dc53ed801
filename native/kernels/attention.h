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
    TILE = 64,    /* positions whose scores are held at a time */
    QUERIES = 32, /* that meet a tile before the next one comes */
    WIDEST = 256, /* columns; wider heads come query by query and WIDEST columns of values at a time */
    Q_STRIDE = WIDEST + LANES, /* floats between queries: no multiple of 1 KiB, which would share few lines of L1 */
#if defined(LT_PLAIN)
    ABREAST = 1, BLOCKS = 1, /* queries and vectors of keys or values at a time */
#elif defined(__AVX512F__)
    ABREAST = 8, BLOCKS = 2, /* 16 sums of 32 registers */
#else
    ABREAST = 4, BLOCKS = 1, /* 4 sums of 8 registers */
#endif
    FEW = 4, /* queries at a time that wait for memory */
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

/* Columns of a kv head, and the vectors of values that are blended of them. */
typedef struct {
    const kv_head *cache;
    int32_t columns, first, vectors;
} slab;

typedef float scores[QUERIES][TILE];

/* What a span has given one query: the result's columns, its largest score, its sum of weights. */
static float *work_piece(const lt_op *op, const lt_step *step, int32_t row, int32_t head, int32_t span, int32_t spans) {
    float *pieces = (float *)step->space[LT_WORK] + SPLIT_ROWS * op->dim[2];
    return pieces + (((int64_t)row * op->dim[1] + head) * spans + span) * (kv_columns(op->dim[3]) + 2);
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
#define UP_TO(n) ((n) < ABREAST ? (n) : ABREAST)
#define AT_A_TIME(n, call)                                                                                      \
    switch (n) {                                                                                                \
    case 8: call(UP_TO(8)); break;                                                                              \
    case 4: call(UP_TO(4)); break;                                                                              \
    case 2: call(UP_TO(2)); break;                                                                              \
    default: call(1);                                                                                           \
    }

/* score[j][lane] = q_j . k, for the positions of `blocks` blocks, from `at` on. Asks for what comes next: these
 * positions' values, and the next blocks' keys. */
static inline __attribute__((always_inline)) void score_blocks(float (*score)[TILE], const float *q, const kv_head *cache,
                                                               int64_t at, int32_t columns, int queries, int blocks) {
    f32x16 sum[ABREAST][BLOCKS], total[ABREAST][BLOCKS];
    const int32_t rows = columns / KV_HALVES, group = KV_GROUP ? KV_GROUP / KV_HALVES : rows;
    const int64_t block_bytes = (int64_t)rows * KV_BYTES;
    const uint8_t *k = cache->keys.codes + at / LANES * block_bytes, *v = cache->values.codes + at / LANES * block_bytes;
    for (int j = 0; j < queries; j++)
        for (int b = 0; b < blocks; b++) total[j][b] = vset1(0);
    for (int32_t begin = 0; begin < rows; begin += group) {
        for (int j = 0; j < queries; j++)
            for (int b = 0; b < blocks; b++) sum[j][b] = vset1(0);
        const float *x = q + begin * KV_HALVES;
        const int32_t end = lt_min(begin + group, rows);
        for (int32_t row = begin; row < end; row++, x++)
            for (int half = 0; half < KV_HALVES; half++) {
                f32x16 codes[BLOCKS];
                for (int b = 0; b < blocks; b++) {
                    const int64_t offset = b * block_bytes + (int64_t)row * KV_BYTES;
                    codes[b] = kv_load(k + offset, half);
                    if (queries > FEW || half) continue;
                    __builtin_prefetch(v + offset);
                    __builtin_prefetch(k + offset + BLOCKS * block_bytes);
                }
                for (int j = 0; j < queries; j++)
                    for (int b = 0; b < blocks; b++)
                        sum[j][b] = vfma(vset1(x[j * Q_STRIDE + half * 16]), codes[b], sum[j][b]);
            }
        for (int b = 0; b < blocks; b++) {
            if (KV_GROUP) {
                const f32x16 scale = vload_f16(kv_scales(&cache->keys, at + b * LANES, begin * KV_HALVES, columns));
                for (int j = 0; j < queries; j++) total[j][b] = vfma(sum[j][b], scale, total[j][b]);
            } else {
                for (int j = 0; j < queries; j++) total[j][b] = sum[j][b];
            }
        }
    }
    for (int j = 0; j < queries; j++)
        for (int b = 0; b < blocks; b++) vstore(score[j] + b * LANES, total[j][b]);
}

/* y_j = y_j * keep[j] + sum of weight[j][t] * v[t] for begin <= t < end, for `width` vectors of columns; the first
 * of them is one of `half` of its bytes */
static inline __attribute__((always_inline)) void blend_columns(float *const *y, int32_t at, const float *keep,
                                                                const float *weight, const uint8_t *v, int64_t stride,
                                                                int32_t begin, int32_t end, int queries, int width,
                                                                int half) {
    f32x16 sum[ABREAST][BLOCKS];
    for (int j = 0; j < queries; j++)
        for (int w = 0; w < width; w++) sum[j][w] = vmul(vload(y[j] + at + w * 16), vset1(keep[j]));
    for (int32_t t = begin; t < end; t++) {
        f32x16 codes[BLOCKS];
        for (int w = 0; w < width; w++) codes[w] = kv_load(v + t * stride + w / KV_HALVES * KV_BYTES, (half + w) % KV_HALVES);
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
            const float *q = s->q + j * Q_STRIDE;
            m = abreast(s->count - j);
#define ALL_BLOCKS(queries) score_blocks(to, q, cache, at + b * LANES, columns, queries, BLOCKS)
#define LAST_BLOCK(queries) score_blocks(to, q, cache, at + b * LANES, columns, queries, 1)
            if (BLOCKS == 1 || b + BLOCKS <= blocks) AT_A_TIME(m, ALL_BLOCKS)
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

/* Some queries see what the first of them does; what the others see beyond that is added one by one. */
static inline __attribute__((always_inline)) void blend_tile(const batch *s, scores weight, const float *keep,
                                                             const uint8_t *v, int64_t stride, int32_t at, int width,
                                                             int half) {
    const float one = 1;
    for (int32_t j = 0, m; j < s->count; j += m) {
        m = abreast(s->count - j);
#define BLEND(queries) blend_columns(s->y + j, at, keep + j, weight[j], v, stride, 0, s->seen[j], queries, width, half)
        AT_A_TIME(m, BLEND)
        for (int32_t i = j; i < j + m; i++)
            if (s->seen[i] > s->seen[j])
                blend_columns(s->y + i, at, &one, weight[i], v, stride, s->seen[j], s->seen[i], 1, width, half);
    }
}

/* Weights times the scales of these columns' values. */
static void scale_weights(const batch *s, scores scaled, scores weight, const uint16_t *scales, int64_t stride) {
    for (int32_t t = 0; t < TILE && t < s->seen[s->count - 1]; t += LANES) {
        const f32x16 scale = vload_f16(scales + t / LANES * stride);
        for (int32_t j = 0; j < s->count; j++) vstore(scaled[j] + t, vmul(vload(weight[j] + t), scale));
    }
}

static void attend_tile(batch *s, const slab *of, float scale, int64_t at) {
    _Alignas(64) scores score, scaled;
    float keep[QUERIES];
    for (int32_t j = 0; j < s->count; j++) s->seen[j] = lt_min(TILE, lt_max(s->positions[j] - (int32_t)at, 0));
    score_tile(s, score, of->cache, at, of->columns);
    weigh(s, score, keep, scale);

    const kv_codes *values = &of->cache->values;
    const int64_t stride = kv_row_bytes(of->columns);
    const uint8_t *v = values->codes + at * stride;
    for (int32_t i = 0, m; i < of->vectors; i += m) {
        const int32_t vector = of->first / 16 + i;
        const uint8_t *from = v + (int64_t)(vector / KV_HALVES) * KV_BYTES;
        if (KV_GROUP && vector % (KV_GROUP / 16) == 0)
            scale_weights(s, scaled, score, kv_scales(values, at, vector * 16, of->columns),
                          kv_groups(of->columns) * LANES);
        float(*weight)[TILE] = KV_GROUP ? scaled : score;
        m = lt_min(BLOCKS, of->vectors - i);
        if (BLOCKS > 1 && m == BLOCKS) blend_tile(s, weight, keep, from, stride, i * 16, BLOCKS, 0);
        else blend_tile(s, weight, keep, from, stride, i * 16, 1, vector % KV_HALVES);
    }
}

/* One span of positions, from nothing. The softmax of a query that sees none of them stays empty: its sum is 0. */
static void attend_span(batch *s, const slab *of, float scale, int32_t begin) {
    const int32_t end = lt_min(begin + SPAN, s->positions[s->count - 1]);
    for (int32_t j = 0; j < s->count; j++) {
        s->most[j] = -INFINITY;
        s->sum[j] = 0;
        memset(s->y[j], 0, (size_t)of->vectors * 16 * sizeof *s->y[j]);
    }
    for (int32_t at = begin; at < end; at += TILE) attend_tile(s, of, scale, at);
}

/* y, most, sum: takes in what the next span has found. */
static void fold(float *y, float *most, float *sum, const float *next, float next_most, float next_sum, int32_t columns) {
    const float now = *most > next_most ? *most : next_most;
    const float shrink = vfirst(vexp(vset1(*most - now))), next_shrink = vfirst(vexp(vset1(next_most - now)));
    for (int32_t i = 0; i < columns; i += 16)
        vstore(y + i, vfma(vload(next + i), vset1(next_shrink), vmul(vload(y + i), vset1(shrink))));
    *sum = *sum * shrink + next_sum * next_shrink;
    *most = now;
}

/* Of the columns of y, those of the result: the first `columns` of the head. */
static void finish(float *result, const float *y, float sum, int32_t columns) {
    const float share = 1 / sum;
    for (int32_t i = 0; i < columns; i++) result[i] = y[i] * share;
}

/* All positions, span by span. */
static void attend(batch *s, const slab *of, float scale) {
    _Alignas(64) float piece[QUERIES * WIDEST];
    attend_span(s, of, scale, 0);
    for (int32_t begin = SPAN; begin < s->positions[s->count - 1]; begin += SPAN) {
        batch next = *s;
        for (int32_t j = 0; j < s->count; j++) next.y[j] = piece + j * WIDEST;
        attend_span(&next, of, scale, begin);
        for (int32_t j = 0; j < s->count; j++)
            if (s->positions[j] > begin)
                fold(s->y[j], &s->most[j], &s->sum[j], next.y[j], next.most[j], next.sum[j], of->vectors * 16);
    }
}

static float *result_at(const lt_op *op, const lt_step *step, int32_t row, int32_t head) {
    return (float *)lt_row(op, step, 0, row) + (int64_t)head * op->dim[3];
}

/* The spans' pieces of some rows' queries, all made, to their results. */
static void fold_pieces(const lt_op *op, const lt_step *step, int32_t kv, int32_t first, int32_t rows, int32_t spans) {
    const int32_t columns = kv_columns(op->dim[3]), group = op->dim[1] / op->dim[2];
    for (int32_t row = first; row < first + rows; row++)
        for (int32_t head = kv * group; head < (kv + 1) * group; head++) {
            float *y = work_piece(op, step, row, head, 0, spans), *sum = y + columns + 1, *next = y;
            for (int32_t begin = SPAN; begin < step->pos + row + 1; begin += SPAN) {
                next += columns + 2;
                fold(y, y + columns, sum, next, next[columns], next[columns + 1], columns);
            }
            finish(result_at(op, step, row, head), y, *sum, op->dim[3]);
        }
}

/* Some rows' queries on one kv head: all spans, or, of more than one, the one given. */
static void run_part(const lt_op *op, const lt_step *step, int32_t kv, int32_t first, int32_t rows, int32_t span,
                     int32_t spans) {
    const int32_t n = op->dim[3], columns = kv_columns(n), group = op->dim[1] / op->dim[2];
    const int32_t most = columns <= WIDEST ? QUERIES : 1;
    const kv_head cache = kv_head_at(step, op->dim[0], op->dim[2], kv, columns);
    _Alignas(64) float q[QUERIES * Q_STRIDE], y[QUERIES * WIDEST];
    for (int32_t done = 0; done < rows * group; done += most) {
        batch s = {.count = lt_min(most, rows * group - done), .q = q};
        int32_t row[QUERIES], head[QUERIES];
        for (int32_t j = 0; j < s.count; j++) {
            row[j] = first + (done + j) / group;
            head[j] = kv * group + (done + j) % group;
            s.positions[j] = step->pos + row[j] + 1;
            const float *from = (const float *)lt_row(op, step, 1, row[j]) + (int64_t)head[j] * n;
            memcpy(q + j * Q_STRIDE, from, (size_t)n * sizeof *q);
            memset(q + j * Q_STRIDE + n, 0, (size_t)(columns - n) * sizeof *q);
        }
        for (int32_t column = 0; column < columns; column += WIDEST) {
            const slab of = {&cache, columns, column, lt_min(WIDEST, columns - column) / 16};
            for (int32_t j = 0; j < s.count; j++)
                s.y[j] = spans > 1 ? work_piece(op, step, row[j], head[j], span, spans) + column : y + j * WIDEST;
            if (spans > 1) attend_span(&s, &of, op->f[0], span * SPAN);
            else attend(&s, &of, op->f[0]);
            for (int32_t j = 0; j < s.count; j++) {
                if (spans > 1) {
                    float *end = s.y[j] - column + columns;
                    end[0] = s.most[j];
                    end[1] = s.sum[j];
                } else {
                    float *to = result_at(op, step, row[j], head[j]) + column;
                    finish(to, s.y[j], s.sum[j], lt_min(WIDEST, n - column));
                }
            }
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
