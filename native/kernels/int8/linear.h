/* Matrices times int8 activations: what all formats share. One text for every ISA, on i8x64.h.
 *
 * linear(y, codes, act_scale, act_sum, <the format's parts>; group): activations come quantized in groups of columns,
 * each with a scale and the sum of its codes. A few tokens meet the packed bytes themselves. For many, a panel of a
 * block's weights is decoded once, one weight to a byte, and multiplied in tiles that stay in registers: vectors, or
 * from AMX_LEAST tokens on those of AMX, `at_once` (else 0) tokens at a time.
 *
 * A format says, before it includes this file,
 *
 *     COLUMNS, STEPS, BYTES   of a chunk: columns of a block of 16 rows that lie together; a step is 4 columns
 *     PANEL                   chunks that are decoded at a time: no fewer than a plane of a group has
 *     MOST                    the largest weight in a panel
 *     HALVES                  panels: 2 if the second holds weights' upper four bits, else 1
 *     format                  a struct of its own, and how it is read: format_open(op, step)
 *     decode(f, p, data, to, b)   one chunk into a panel
 *
 *     FEW                     of f, perhaps: up to so many tokens are better taken without a panel
 *
 * and, if its integers are summed over a whole row before anything becomes a float (WHOLE),
 *
 *     chunk_at(f, block, c)   where a chunk lies
 *     blocks_dot(f, block, blocks, x, dots)   the sums of one or BLOCKS_PER_PART blocks with each of x's tokens
 *     row_finish(f, sums, block, act_scale, act_sum)
 *
 * or, if groups become floats one after the other, and each is a sum of one or more planes p with scales of their own,
 *
 *     HALF_TILES              of f: whether tiles of half the tokens are better, so that results, too, stay in registers
 *     group, planes           of f: chunks that share an activation scale; planes. Or GROUP, PLANES: the same for all
 *     chunks_dot(f, p, data, x, chunks, ahead, dots)   the sums of a plane's chunks with each of x's tokens
 *     pair_dot(f, p, data, apart, x, chunks, ahead, dots)   if PAIRS, the same of two blocks, for one token: where a group
 *                             has few products at a time, they would wait for each other
 *     group_at(f, block, g, p, chunks)   where a plane of a group of so many chunks lies
 *     grid, grid_at(f, block, g, p), add_group(y, sums, grid, act_scale, act_sum) */
#pragma once
#include "tile.h"

#ifndef GROUP
#define GROUP f->group
#endif
#ifndef PLANES
#define PLANES f->planes
#endif
#ifndef PAIRS
#define PAIRS 0
#endif
#ifndef HALF_TILES
#define HALF_TILES 0
#endif

enum {
    BLOCK = 16,              /* output rows */
    BLOCKS_PER_PART = 2,     /* blocks that one thread takes at a time */
    BATCH = 16 * TILE_TOKENS, /* tokens that share one decoding */
    TILES_ABREAST = 4,        /* rows of tiles that share a panel's activations while these are in a near cache */
    AMX_LEAST = 8,            /* tokens: fewer leave most of a register empty */
    MOST_TOKENS = AMX ? 32 : TILE_TOKENS /* of a tile */
};

typedef uint8_t panel[HALVES * PANEL * STEPS][TILE_BLOCKS][VECTOR];

LT_INLINE void store_rows(const lt_op *op, const lt_step *step, int32_t token, int32_t block, f32x16 y) {
    float *to = (float *)lt_row(op, step, 0, token) + block * BLOCK;
    const int32_t rows = op->arg[0].cols - block * BLOCK;
    if (rows >= BLOCK) vstore(to, y);
    else vstoren(to, y, rows);
}

LT_INLINE float act_of(const lt_op *op, const char *row, int arg, int token, int32_t group) {
    return *(const float *)(row + token * op->arg[arg].stride + group * (int64_t)sizeof(float));
}

/* Some blocks times a few tokens, side by side: memory is read faster as two streams. group: chunks that share an
 * activation scale. */
LT_INLINE void blocks_times(const lt_op *op, const lt_step *step, const format *f, int32_t first, int32_t blocks,
                            int32_t token, int tokens, int32_t group) {
    const few x = {lt_row(op, step, 1, token), op->arg[1].stride, tokens};
    const char *act_scale = lt_row(op, step, 2, token), *act_sum = lt_row(op, step, 3, token);
#if WHOLE
    (void)group;
    i32x16 sums[BLOCKS_PER_PART * AT_ONCE];
    if (blocks == BLOCKS_PER_PART) blocks_dot(f, first, BLOCKS_PER_PART, x, sums);
    else blocks_dot(f, first, 1, x, sums);
    for (int32_t b = 0; b < blocks; b++)
        for (int t = 0; t < tokens; t++) {
            const float scale = act_of(op, act_scale, 2, t, 0), sum = act_of(op, act_sum, 3, t, 0);
            store_rows(op, step, token + t, first + b, row_finish(f, sums[b * tokens + t], first + b, scale, sum));
        }
#else
    f32x16 y[BLOCKS_PER_PART][AT_ONCE];
    for (int32_t b = 0; b < blocks; b++)
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) y[b][t] = vset1(0);
    for (int32_t c = 0, g = 0; c < f->chunks; c += group, g++) {
        const int32_t chunks = group == 1 ? 1 : lt_min(group, f->chunks - c);
        const int64_t left = (f->chunks - c) * (int64_t)BYTES; /* behind them come the next blocks, not the neighbour */
        const int64_t ahead = left > PREFETCH ? PREFETCH : PREFETCH + (blocks - 1) * f->chunks * (int64_t)BYTES;
#if PAIRS
        if (tokens == 1 && blocks == 2) {
            for (int32_t p = 0; p < PLANES; p++) {
                const uint8_t *data = group_at(f, first, g, p, chunks);
                const int64_t apart = group_at(f, first + 1, g, p, chunks) - data;
                i32x16 sums[2];
                pair_dot(f, p, data, apart, few_from(x, c * COLUMNS), chunks, ahead, sums);
                for (int b = 0; b < 2; b++) {
                    const grid w = grid_at(f, first + b, g, p);
                    const float scale = act_of(op, act_scale, 2, 0, g), sum = act_of(op, act_sum, 3, 0, g);
                    y[b][0] = add_group(y[b][0], sums[b], w, scale, sum);
                }
            }
            continue;
        }
#endif
        for (int32_t b = 0; b < blocks; b++)
            for (int32_t p = 0; p < PLANES; p++) {
                const uint8_t *data = group_at(f, first + b, g, p, chunks);
                i32x16 sums[AT_ONCE];
                chunks_dot(f, p, data, few_from(x, c * COLUMNS), chunks, ahead, sums);
                const grid w = grid_at(f, first + b, g, p);
#pragma GCC unroll 4
                for (int t = 0; t < tokens; t++)
                    y[b][t] = add_group(y[b][t], sums[t], w, act_of(op, act_scale, 2, t, g), act_of(op, act_sum, 3, t, g));
            }
    }
    for (int32_t b = 0; b < blocks; b++)
#pragma GCC unroll 4
        for (int t = 0; t < tokens; t++) store_rows(op, step, token + t, first + b, y[b][t]);
#endif
}

#if WHOLE
#define SMALL 0
#define blocks_times_few(...) blocks_times(__VA_ARGS__, 0)
#else
#define SMALL (GROUP == 1) /* groups of one chunk cost most, so there is code for them */
#define blocks_times_few(...) (SMALL ? blocks_times(__VA_ARGS__, 1) : blocks_times(__VA_ARGS__, GROUP))
#endif
#ifndef FEW
#define FEW (SMALL ? 2 : FEW_TOKENS)
#endif

/* Some blocks times few tokens: weights come from memory for the first of them, and are near for the others. */
static void blocks_times_tokens(const lt_op *op, const lt_step *step, const format *f, int32_t first, int32_t blocks,
                                int32_t tokens) {
    int32_t t = 0;
    if (AT_ONCE >= 4 && !SMALL)
        for (; t + 4 <= tokens; t += 4) blocks_times_few(op, step, f, first, blocks, t, lt_min(4, AT_ONCE));
    if (AT_ONCE >= 2)
        for (; t + 2 <= tokens; t += 2) blocks_times_few(op, step, f, first, blocks, t, lt_min(2, AT_ONCE));
    for (; t < tokens; t++) blocks_times_few(op, step, f, first, blocks, t, 1);
}

#if WHOLE
typedef int32_t result[TILE_BLOCKS][BLOCK];
#else
typedef float result[TILE_BLOCKS][BLOCK];
#endif

#if AMX
_Static_assert(PANEL * STEPS % AMX_ROWS == 0, "the last steps of a panel that AMX takes go beyond it");

/* Steps that AMX takes at once: as many as divide a group. */
static inline int32_t amx_depth(const format *f) {
#if WHOLE
    (void)f;
    return AMX_ROWS;
#else
    (void)f;
    const int32_t steps = GROUP * STEPS;
    return lt_min(AMX_ROWS, steps & -steps);
#endif
}

/* Tokens that AMX takes at once, or 0. */
static int amx_open(const format *f, int32_t tokens) {
    if (tokens < AMX_LEAST) return 0;
    amx_begin(lt_min(tokens, AMX_ROWS), amx_depth(f));
    return tokens < 2 * AMX_ROWS ? lt_min(tokens, AMX_ROWS) : 2 * AMX_ROWS;
}

static void amx_close(int at_once) {
    if (at_once) amx_end();
}
#else
#define amx_open(f, tokens) 0
#define amx_close(at_once) (void)(at_once)
#endif

/* The sums of a panel, which begins at a column, and tokens. Returns where in `sums` theirs begin. */
LT_INLINE int panel_sums(const lt_op *op, const lt_step *step, const format *f,
                         const uint8_t weights[][TILE_BLOCKS][VECTOR], int32_t column, int32_t steps, int32_t token,
                         int tokens, int at_once, i32x16 sums[][TILE_BLOCKS]) {
    const int64_t stride = op->arg[1].stride;
    const int8_t *codes = (const int8_t *)lt_row(op, step, 1, token) + column;
#if AMX
    if (at_once) { /* tokens of a tile that is not full come behind some of the one before */
        const int before = lt_max(0, token + at_once - lt_rows(op, step));
        amx_tile(weights, steps, amx_depth(f), codes - before * stride, stride, at_once, sums);
        return before;
    }
#endif
    (void)f, (void)at_once;
    tile(weights, steps, codes, stride, tokens, SAFE_STEPS(127 * MOST), sums);
    return 0;
}

#if WHOLE
/* A panel of chunks, the first of them `first`, times tokens. */
LT_INLINE void panel_times(const lt_op *op, const lt_step *step, const format *f, const panel weights, int32_t first,
                           int32_t chunks, int32_t token, int tokens, int at_once, result y[]) {
    const int32_t steps = lt_ceil_div(chunks * STEPS, SPAN) * SPAN;
    i32x16 sums[MOST_TOKENS][TILE_BLOCKS];
    const int at = panel_sums(op, step, f, weights, first * COLUMNS, steps, token, tokens, at_once, sums);
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) istore(y[t][b], iadd(iload(y[t][b]), sums[at + t][b]));
}
#else
/* A plane of a group in a panel, where it begins at a multiple of a group's steps. */
typedef struct {
    int32_t group, steps;
    grid grids[TILE_BLOCKS];
} part;

/* A panel of so many parts, times tokens. The results of few stay in registers meanwhile. */
LT_INLINE void panel_times(const lt_op *op, const lt_step *step, const format *f, const panel weights,
                           const part parts[], int32_t count, int32_t token, int tokens, int at_once, result y[]) {
    const char *act_scale = lt_row(op, step, 2, token), *act_sum = lt_row(op, step, 3, token);
    const int few = tokens <= TILE_TOKENS / 2;
    f32x16 now[TILE_TOKENS][TILE_BLOCKS];
#pragma GCC unroll 12
    for (int t = 0; few && t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) now[t][b] = vload(y[t][b]);
    for (int32_t n = 0; n < count; n++) {
        const int32_t group = parts[n].group, column = group * GROUP * COLUMNS;
        const int32_t steps = GROUP == 1 ? STEPS : parts[n].steps;
        i32x16 sums[MOST_TOKENS][TILE_BLOCKS];
        const uint8_t(*from)[TILE_BLOCKS][VECTOR] = weights + n * GROUP * STEPS;
        const int at = panel_sums(op, step, f, from, column, steps, token, tokens, at_once, sums);
        if (HALVES == 2) {
            i32x16 upper[MOST_TOKENS][TILE_BLOCKS];
            panel_sums(op, step, f, from + PANEL * STEPS, column, steps, token, tokens, at_once, upper);
#pragma GCC unroll 12
            for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
                for (int b = 0; b < TILE_BLOCKS; b++) sums[at + t][b] = iadd(sums[at + t][b], ishl(upper[at + t][b], 4));
        }
        grid grids[TILE_BLOCKS]; /* which results written might be, for all the compiler knows */
        for (int b = 0; b < TILE_BLOCKS; b++) grids[b] = parts[n].grids[b];
#pragma GCC unroll 12
        for (int t = 0; t < tokens; t++) {
            const float scale = act_of(op, act_scale, 2, t, group), sum = act_of(op, act_sum, 3, t, group);
#pragma GCC unroll 2
            for (int b = 0; b < TILE_BLOCKS; b++)
                if (few) now[t][b] = add_group(now[t][b], sums[at + t][b], grids[b], scale, sum);
                else vstore(y[t][b], add_group(vload(y[t][b]), sums[at + t][b], grids[b], scale, sum));
        }
    }
#pragma GCC unroll 12
    for (int t = 0; few && t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) vstore(y[t][b], now[t][b]);
}
#endif

/* panel_times() for all tokens, in tiles as large as they fit. */
#define TILES_OF(n, ...) \
    for (; t + n <= tokens; t += n) panel_times(op, step, f, __VA_ARGS__, token + t, n, 0, y + t)
#define TILES(...)                              \
    do {                                        \
        int32_t t = 0;                          \
        for (; AMX && at_once && t < tokens; t += at_once) \
            panel_times(op, step, f, __VA_ARGS__, token + t, lt_min(at_once, tokens - t), at_once, y + t); \
        if (!AMX && !HALF_TILES) TILES_OF(TILE_TOKENS, __VA_ARGS__); \
        if (!AMX && HALF_TILES) TILES_OF((TILE_TOKENS / 2), __VA_ARGS__); \
        if (TILE_TOKENS > 4) TILES_OF(4, __VA_ARGS__); \
        if (TILE_TOKENS > 2) TILES_OF(2, __VA_ARGS__); \
        TILES_OF(1, __VA_ARGS__);               \
    } while (0)

/* The i-th block of a row of tiles that begins with block `first`; the last block fills the tile. */
LT_INLINE int32_t tile_block(int32_t first, int32_t i, int32_t last) { return lt_min(first + i, last - 1); }

/* Up to BATCH tokens times the blocks block <= b < last, up to TILES_ABREAST tiles of them. */
static void blocks_times_batch(const lt_op *op, const lt_step *step, const format *f, int32_t block, int32_t last,
                               int32_t token, int32_t tokens, int at_once) {
    panel weights __attribute__((aligned(VECTOR)));
    result sums[TILES_ABREAST][BATCH], *y = sums[0];
    for (int32_t b = block; b < last; b += TILE_BLOCKS, y += BATCH) memset(y, 0, (size_t)tokens * sizeof *y);
    for (int32_t t = 0; t < tokens; t++) /* what will be written: a page of its own each */
        __builtin_prefetch((float *)lt_row(op, step, 0, token + t) + block * BLOCK, 1);
#if WHOLE
    for (int32_t first = 0; first < f->chunks; first += PANEL) {
        const int32_t chunks = lt_min(PANEL, f->chunks - first);
        y = sums[0];
        for (int32_t b = block; b < last; b += TILE_BLOCKS, y += BATCH) {
            for (int32_t c = 0; c < chunks; c++)
                for (int32_t i = 0; i < TILE_BLOCKS; i++) {
                    const uint8_t *data = chunk_at(f, tile_block(b, i, last), first + c);
                    __builtin_prefetch(data + PREFETCH); /* the next panel's, where a few tokens wait for memory */
                    decode(f, 0, data, weights + c * STEPS, i);
                }
            finish_panel(weights, chunks * STEPS);
            TILES(weights, first, chunks);
        }
    }
    const char *act_scale = lt_row(op, step, 2, token), *act_sum = lt_row(op, step, 3, token);
#else
    const int32_t all = lt_ceil_div(f->chunks, GROUP) * PLANES, some = PANEL / GROUP;
    for (int32_t first = 0; first < all; first += some) {
        const int32_t count = lt_min(some, all - first);
        y = sums[0];
        for (int32_t b = block; b < last; b += TILE_BLOCKS, y += BATCH) {
            part parts[PANEL];
            for (int32_t n = 0; n < count; n++) {
                const int32_t g = (first + n) / PLANES, p = (first + n) % PLANES;
                const int32_t chunks = lt_min(GROUP, f->chunks - g * GROUP);
                uint8_t(*to)[TILE_BLOCKS][VECTOR] = weights + n * GROUP * STEPS;
                parts[n].group = g;
                parts[n].steps = chunks * STEPS;
                for (int32_t i = 0; i < TILE_BLOCKS; i++) {
                    const int32_t at = tile_block(b, i, last);
                    const uint8_t *data = group_at(f, at, g, p, chunks);
                    parts[n].grids[i] = grid_at(f, at, g, p);
                    for (int32_t c = 0; c < chunks; c++) {
                        for (int v = 0; v < BYTES; v += VECTOR) __builtin_prefetch(data + c * BYTES + v + PREFETCH);
                        decode(f, p, data + c * BYTES, to + c * STEPS, i);
                    }
                }
                for (int h = 0; h < HALVES; h++) finish_panel(to + h * PANEL * STEPS, chunks * STEPS);
            }
            TILES(weights, parts, count);
        }
    }
#endif
    for (int32_t t = 0; t < tokens; t++)
        for (int32_t b = block; b < last; b++) {
            const int32_t i = (b - block) % TILE_BLOCKS;
            y = sums[(b - block) / TILE_BLOCKS];
#if WHOLE
            const float scale = act_of(op, act_scale, 2, t, 0), sum = act_of(op, act_sum, 3, t, 0);
            store_rows(op, step, token + t, b, row_finish(f, iload(y[t][i]), b, scale, sum));
#else
            store_rows(op, step, token + t, b, vload(y[t][i]));
#endif
        }
}

static void linear_run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const format own = format_open(op, step), *f = &own;
    const int32_t tokens = lt_rows(op, step), last = lt_min(end * BLOCKS_PER_PART, lt_ceil_div(op->arg[0].cols, BLOCK));
    if (tokens <= lt_min(FEW, AMX ? AMX_LEAST - 1 : FEW_TOKENS)) {
        for (int32_t block = begin * BLOCKS_PER_PART; block < last; block += BLOCKS_PER_PART)
            blocks_times_tokens(op, step, f, block, lt_min(BLOCKS_PER_PART, last - block), tokens);
        return;
    }
    const int32_t abreast = TILES_ABREAST * TILE_BLOCKS;
    const int at_once = amx_open(f, tokens);
    for (int32_t block = begin * BLOCKS_PER_PART; block < last; block += abreast)
        for (int32_t t = 0; t < tokens; t += BATCH)
            blocks_times_batch(op, step, f, block, lt_min(block + abreast, last), t, lt_min(BATCH, tokens - t), at_once);
    amx_close(at_once);
}

static int32_t linear_units(const lt_op *op, const lt_step *step) {
    return lt_rows(op, step) ? lt_ceil_div(op->arg[0].cols, BLOCK * BLOCKS_PER_PART) : 0;
}
