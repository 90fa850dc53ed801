/* attention(y, q[, sinks]; at, heads, kv_heads, head_dim, window; scale, cap): causal softmax(q k^T * scale) v, grouped
 * queries.
 *
 * A query sees as many positions, its own the last, as the window says, all of them if that is 0. Scores are capped as
 * vcap() does, unless that is 0. A head's sink, if there are sinks, is one score more, of a position without a value.
 *
 * One part is some rows' queries on one kv head: what is loaded of a key or a value serves as many of them as the
 * registers hold. Positions come in tiles; softmax is online (Milakov & Gimelshein 2018), so memory does not grow with
 * the context. A step of few rows is cut into spans of positions too, which different threads may take: their results
 * are folded in the spans' order, by whoever finishes last (Dao et al., Flash-Decoding 2023). Longer steps go through
 * the same spans one after another.
 *
 * Tiles and spans begin at multiples of their length, every sum has its own order, and no query's sums see a position
 * behind it: a token's result is the same bits whether it came alone or in a batch, and for any number of threads. */
#include "attention_batch.h"

/* What a span has given one query: the result's columns, its largest score, its sum of weights. */
static float *work_piece(const lt_op *op, const lt_step *step, int32_t row, int32_t head, int32_t span, int32_t spans) {
    float *pieces = (float *)step->space[LT_WORK] + SPLIT_ROWS * op->dim[1];
    return pieces + (((int64_t)row * op->dim[1] + head) * spans + span) * (kv_columns(op->dim[3]) + 2);
}

/* How the op is cut into parts: kv heads, times tiles of rows, times spans of positions where there are few rows. */
typedef struct {
    int32_t tile_rows, tiles, first, spans; /* first: of the spans that any query sees */
} cuts;

/* The first position that a row's queries see. */
static int32_t first_seen(const lt_op *op, const lt_step *step, int32_t row) {
    return op->dim[4] ? lt_max(lt_first_position(op, step) + row + 1 - op->dim[4], 0) : 0;
}

static cuts cut(const lt_op *op, const lt_step *step) {
    const int32_t rows = lt_rows(op, step), group = op->dim[1] / op->dim[2];
    const int32_t tile_rows = group < QUERIES ? QUERIES / group : 1, first = first_seen(op, step, 0) / KV_SPAN;
    return (cuts){tile_rows, lt_ceil_div(rows, tile_rows), first,
                  rows <= SPLIT_ROWS ? lt_ceil_div(lt_first_position(op, step) + rows, KV_SPAN) - first : 1};
}

static int32_t units(const lt_op *op, const lt_step *step) {
    const cuts c = cut(op, step);
    return c.tiles * op->dim[2] * c.spans;
}

/* Scores to weights e^(score - most), in place, of the positions that each query sees, and 0 for those before its window.
 * keep: by what the sums so far shrink, as `most` has grown. */
static void weigh(batch *s, scores score, float keep[QUERIES]) {
    _Alignas(64) float before[QUERIES];
    memcpy(before, s->most, sizeof before);
    const float scale = s->cap ? 1 : s->scale; /* of capped scores, which are made first */
    for (int32_t j = 0; j < s->count; j++) {
        s->top[j] = -INFINITY;
        if (s->seen[j] <= s->passed[j]) continue;
        if (s->cap) {
            for (int32_t t = 0; t < TILE; t += 16)
                vstore(score[j] + t, vcap(vmul(vload(score[j] + t), vset1(s->scale)), s->cap));
        }
        for (int32_t t = 0; t < s->passed[j]; t++) score[j][t] = -INFINITY;
        for (int32_t t = s->seen[j]; t < TILE; t++) score[j][t] = -INFINITY;
        f32x16 most = vset1(-INFINITY);
        for (int32_t t = 0; t < TILE; t += 16) most = vmax(most, vload(score[j] + t));
        s->top[j] = vhmax(most);
        if (s->top[j] * scale > s->most[j]) s->most[j] = s->top[j] * scale;
    }
    for (int32_t j = 0; j < s->count; j += 16) {
        const f32x16 most = vload(s->most + j);
        vstore(keep + j, vexp(vsub(vload(before + j), most)));
        vstore(s->top + j, vexp(vfma(vload(s->top + j), vset1(scale), vsub(vset1(0), most))));
    }
    for (int32_t j = 0; j < s->count; j++) {
        if (s->seen[j] <= s->passed[j]) {
            keep[j] = 1;
            for (int32_t t = 0; t < TILE; t += 16) vstore(score[j] + t, vset1(0));
            continue;
        }
        f32x16 total = vset1(0);
        for (int32_t t = 0; t < TILE; t += 16 * EXPS) { /* unseen: e^-87, lost beside the largest, which is 1 */
            f32x16 weight[EXPS];
            for (int i = 0; i < EXPS; i++)
                weight[i] = vfma(vload(score[j] + t + i * 16), vset1(scale), vset1(-s->most[j]));
            vexps(weight, EXPS);
            for (int i = 0; i < EXPS; i++) {
                vstore(score[j] + t + i * 16, weight[i]);
                total = vadd(total, weight[i]);
            }
        }
        for (int32_t t = 0; t < s->passed[j]; t++) score[j][t] = 0;
        s->sum[j] = s->sum[j] * keep[j] + vsum(total);
    }
}

static void attend_tile(batch *s, const slab *of, int64_t at) {
    _Alignas(64) scores score;
    _Alignas(64) float keep[QUERIES];
    for (int32_t j = 0; j < s->count; j++) {
        s->seen[j] = lt_min(TILE, lt_max(s->positions[j] - (int32_t)at, 0));
        s->passed[j] = lt_min(TILE, lt_max(s->first[j] - (int32_t)at, 0));
    }
    score_tile(s, score, of->cache, at, of->columns);
    weigh(s, score, keep);
    blend_tile(s, of, score, keep, at);
}

/* One span of positions, from nothing, but for tiles before all windows. The softmax of a query that sees none of them
 * stays empty: its sum is 0. */
static void attend_span(batch *s, const slab *of, int32_t begin) {
    const int32_t end = lt_min(begin + KV_SPAN, s->positions[s->count - 1]);
    for (int32_t j = 0; j < s->count; j++) {
        s->most[j] = -INFINITY;
        s->sum[j] = 0;
        memset(s->y[j], 0, (size_t)of->vectors * 16 * sizeof *s->y[j]);
    }
    for (int32_t at = lt_max(begin, s->first[0] / TILE * TILE); at < end; at += TILE) attend_tile(s, of, at);
}

/* y, most, sum: takes in what the next span has found. */
static void fold(float *y, float *most, float *sum, const float *next, float next_most, float next_sum, int32_t columns) {
    if (*sum == 0) { /* nothing so far: before the window */
        memcpy(y, next, (size_t)columns * sizeof *y);
        *most = next_most;
        *sum = next_sum;
        return;
    }
    const float now = *most > next_most ? *most : next_most;
    const float shrink = vfirst(vexp(vset1(*most - now))), next_shrink = vfirst(vexp(vset1(next_most - now)));
    for (int32_t i = 0; i < columns; i += 16)
        vstore(y + i, vfma(vload(next + i), vset1(next_shrink), vmul(vload(y + i), vset1(shrink))));
    *sum = *sum * shrink + next_sum * next_shrink;
    *most = now;
}

/* A head's sink, or NULL. */
static const float *sink_of(const lt_op *op, const lt_step *step, int32_t head) {
    const float *sinks = lt_row(op, step, 2, 0);
    return sinks ? sinks + head : NULL;
}

/* Of the columns of y, those of the result: the first `columns` of the head. sink: NULL, or a score for the sum alone. */
static void finish(float *result, const float *y, float most, float sum, const float *sink, int32_t columns) {
    float share = 1 / sum;
    if (sink) {
        const float now = most > *sink ? most : *sink, shrink = vfirst(vexp(vset1(most - now)));
        share = shrink / (sum * shrink + vfirst(vexp(vset1(*sink - now))));
    }
    for (int32_t i = 0; i < columns; i++) result[i] = y[i] * share;
}

/* All positions, span by span. */
static void attend(batch *s, const slab *of) {
    _Alignas(64) float piece[QUERIES * WIDEST];
    const int32_t first = s->first[0] / KV_SPAN * KV_SPAN;
    attend_span(s, of, first);
    for (int32_t begin = first + KV_SPAN; begin < s->positions[s->count - 1]; begin += KV_SPAN) {
        batch next = *s;
        for (int32_t j = 0; j < s->count; j++) next.y[j] = piece + j * WIDEST;
        attend_span(&next, of, begin);
        for (int32_t j = 0; j < s->count; j++)
            if (s->positions[j] > begin)
                fold(s->y[j], &s->most[j], &s->sum[j], next.y[j], next.most[j], next.sum[j], of->vectors * 16);
    }
}

static float *result_at(const lt_op *op, const lt_step *step, int32_t row, int32_t head) {
    return (float *)lt_row(op, step, 0, row) + (int64_t)head * op->dim[3];
}

/* The spans' pieces of some rows' queries, all made, to their results. */
static void fold_pieces(const lt_op *op, const lt_step *step, int32_t kv, int32_t first, int32_t rows, const cuts *c) {
    const int32_t columns = kv_columns(op->dim[3]), group = op->dim[1] / op->dim[2];
    for (int32_t row = first; row < first + rows; row++)
        for (int32_t head = kv * group; head < (kv + 1) * group; head++) {
            float *y = work_piece(op, step, row, head, 0, c->spans), *sum = y + columns + 1, *next = y;
            for (int32_t begin = (c->first + 1) * KV_SPAN; begin < lt_first_position(op, step) + row + 1; begin += KV_SPAN) {
                next += columns + 2;
                fold(y, y + columns, sum, next, next[columns], next[columns + 1], columns);
            }
            finish(result_at(op, step, row, head), y, y[columns], *sum, sink_of(op, step, head), op->dim[3]);
        }
}

/* Some rows' queries on one kv head: all spans, or, of more than one, the one given. */
static void run_part(const lt_op *op, const lt_step *step, int32_t kv, int32_t first, int32_t rows, int32_t span,
                     const cuts *c) {
    const int32_t spans = c->spans;
    const int32_t n = op->dim[3], columns = kv_columns(n), group = op->dim[1] / op->dim[2];
    const int32_t most = columns <= WIDEST ? QUERIES : 1;
    const kv_head cache = kv_head_at(step, op->dim[0], op->dim[2], kv, columns);
    queries q;
    _Alignas(64) float y[QUERIES * WIDEST];
    for (int32_t done = 0; done < rows * group; done += most) {
        batch s = {.count = lt_min(most, rows * group - done), .q = &q, .scale = op->f[0], .cap = op->f[1]};
        int32_t row[QUERIES], head[QUERIES];
        for (int32_t j = 0; j < s.count; j++) {
            row[j] = first + (done + j) / group;
            head[j] = kv * group + (done + j) % group;
            s.positions[j] = lt_first_position(op, step) + row[j] + 1;
            s.first[j] = first_seen(op, step, row[j]);
            const float *from = (const float *)lt_row(op, step, 1, row[j]) + (int64_t)head[j] * n;
            take_query(&q, j, from, n, columns);
        }
        for (int32_t column = 0; column < columns; column += WIDEST) {
            const slab of = {&cache, columns, column, lt_min(WIDEST, columns - column) / 16};
            for (int32_t j = 0; j < s.count; j++)
                s.y[j] = spans > 1 ? work_piece(op, step, row[j], head[j], span, spans) + column : y + j * WIDEST;
            if (spans > 1) attend_span(&s, &of, (c->first + span) * KV_SPAN);
            else attend(&s, &of);
            for (int32_t j = 0; j < s.count; j++) {
                if (spans > 1) {
                    float *end = s.y[j] - column + columns;
                    end[0] = s.most[j];
                    end[1] = s.sum[j];
                } else {
                    float *to = result_at(op, step, row[j], head[j]) + column;
                    const float *sink = sink_of(op, step, head[j]);
                    finish(to, s.y[j], s.most[j], s.sum[j], sink, lt_min(WIDEST, n - column));
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
        run_part(op, step, kv, first, rows, span, &c);
        int32_t *count = (int32_t *)step->space[LT_WORK] + some;
        if (c.spans > 1 && __atomic_add_fetch(count, 1, __ATOMIC_ACQ_REL) == c.spans) {
            fold_pieces(op, step, kv, first, rows, &c); /* whoever comes last: the order of spans is the same */
            *count = 0;
        }
    }
}
