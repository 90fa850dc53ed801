/* Products of matrices on uniform grids (uniform.h) with int8 activations. Include after defining BITS.
 *
 * linear(y, codes, act_scale, act_sum, data, scale, zero; group): activations come quantized in groups of `group`
 * columns; a group of a row adds
 *
 *     (act_scale * scale) * (codes . c - zero * act_sum)
 *
 * to the row's float, group after group: the integers are exact, and the floats have one order everywhere. */
#pragma once
#include "i8x64.h"
#include "uniform.h"

enum {
    BLOCKS_PER_PART = 2,     /* blocks that one thread takes at a time */
    PANEL = 16,              /* chunks that are decoded at a time */
    BATCH = 16 * TILE_TOKENS, /* tokens that share one decoding */
    PREFETCH = 2048,         /* bytes ahead */
};

LT_INLINE f32x16 add_group(f32x16 y, i32x16 dot, grid w, float act_scale, float act_sum) {
    const f32x16 sum = vfnma(vset1(act_sum), w.zero, vfrom_i32(dot));
    return vfma(vmul(vset1(act_scale), w.scale), sum, y);
}

LT_INLINE void store_rows(const lt_op *op, const lt_step *step, int32_t token, int32_t block, int32_t rows, f32x16 y) {
    float *to = (float *)lt_row(op, step, 0, token) + block * BLOCK;
    if (rows - block * BLOCK >= BLOCK) vstore(to, y);
    else vstoren(to, y, rows - block * BLOCK);
}

/* One plane of one block, over chunks, times one token. */
LT_INLINE i32x16 plane_dot(const uint8_t *data, const int8_t *codes, int32_t chunks, int width) {
    const int fields = 8 / width, sums = IN_PLACE ? fields : 1;
    const int32_t safe = SAFE_STEPS((1 << width) - 1) / STEPS;
    i32x16 total[8];
#pragma GCC unroll 8
    for (int i = 0; i < sums; i++) total[i] = izero();
    for (int32_t c = 0; c < chunks;) {
        const int32_t stop = IN_PLACE ? chunks : lt_min(c + safe, chunks);
        narrow part[8];
#pragma GCC unroll 8
        for (int i = 0; i < sums; i++) part[i] = nzero();
        for (; c < stop; c++)
#pragma GCC unroll 8
            for (int v = 0; v < width; v++) {
                const uint8_t *at = data + (int64_t)c * CHUNK_BYTES + v * VECTOR;
                const u8x64 bytes = u8load(at);
                __builtin_prefetch(at + PREFETCH);
#pragma GCC unroll 8
                for (int i = 0; i < fields; i++) {
                    const int8_t *a = codes + c * CHUNK + (v * fields + i) * STEP;
                    part[IN_PLACE ? i : 0] = dot4at(part[IN_PLACE ? i : 0], u8field(bytes, width, i), a);
                }
            }
#pragma GCC unroll 8
        for (int i = 0; i < sums; i++) total[i] = widen(total[i], part[i]);
    }
    const int last = sums - 1 - LAST_SHIFTED; /* field i is 2^(width * i) too large */
    i32x16 dot = total[last];
#pragma GCC unroll 8
    for (int i = last - 1; i >= 0; i--) dot = iadd(ishr(dot, width), total[i]);
    return LAST_SHIFTED ? iadd(dot, total[sums - 1]) : dot;
}

/* Chunks of one block times one token. */
LT_INLINE i32x16 chunks_dot(const uint8_t *data, const int8_t *codes, int32_t chunks) {
    const i32x16 low = plane_dot(data, codes, chunks, LOW);
    if (HIGH == 0) return low;
    return iadd(low, ishl(plane_dot(data + LOW * VECTOR, codes, chunks, HIGH ? HIGH : 1), LOW));
}

static inline void block_times_token(const lt_op *op, const lt_step *step, const matrix *m, int32_t block,
                                     int32_t token) {
    const int8_t *codes = lt_row(op, step, 1, token);
    const float *act_scale = lt_row(op, step, 2, token);
    const float *act_sum = lt_row(op, step, 3, token);
    f32x16 y = vset1(0);
    for (int32_t c = 0, g = 0; c < m->chunks; c += m->group, g++) {
        const i32x16 dot = chunks_dot(matrix_chunk(m, block, c), codes + c * CHUNK, lt_min(m->group, m->chunks - c));
        y = add_group(y, dot, grid_at(m, block, g), act_scale[g], act_sum[g]);
    }
    store_rows(op, step, token, block, m->rows, y);
}

/* Weights one to a byte, step by step. */
typedef uint8_t panel[PANEL * STEPS][TILE_BLOCKS][VECTOR];

LT_INLINE u8x64 plane_step(const uint8_t *plane, int width, int step) {
    return u8down(u8load(plane + step * width / 8 * VECTOR), width, step % (8 / width));
}

LT_INLINE void decode_chunk(const uint8_t *data, panel to, int32_t chunk, int32_t block) {
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; s++) {
        u8x64 codes = plane_step(data, LOW, s);
        if (HIGH) codes = u8or(codes, u8up(plane_step(data + LOW * VECTOR, HIGH ? HIGH : 1, s), LOW));
        u8store(to[chunk * STEPS + s][block], codes);
    }
}

/* Steps of a panel times `tokens` tokens. */
LT_INLINE void tile_steps(const uint8_t weights[][TILE_BLOCKS][VECTOR], int32_t steps, const int8_t *codes,
                          int64_t stride, int tokens, narrow result[TILE_TOKENS][TILE_BLOCKS]) {
    narrow sums[TILE_TOKENS][TILE_BLOCKS]; /* in registers, as long as every loop over it is unrolled */
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) sums[t][b] = nzero();
    for (int32_t s = 0; s < steps; s++) {
        u8x64 w[TILE_BLOCKS];
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) w[b] = u8load(weights[s][b]);
#pragma GCC unroll 12
        for (int t = 0; t < tokens; t++) {
            const i8x4 a = i8load4(codes + t * stride + s * STEP);
#pragma GCC unroll 2
            for (int b = 0; b < TILE_BLOCKS; b++) sums[t][b] = dot4(sums[t][b], w[b], a);
        }
    }
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) result[t][b] = sums[t][b];
}

/* The same with sums in full, as narrow ones hold few steps on some ISAs. */
LT_INLINE void tile(const uint8_t weights[][TILE_BLOCKS][VECTOR], int32_t steps, const int8_t *codes, int64_t stride,
                    int tokens, i32x16 total[TILE_TOKENS][TILE_BLOCKS]) {
    const int32_t safe = SAFE_STEPS((1 << BITS) - 1);
#pragma GCC unroll 12
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
        for (int b = 0; b < TILE_BLOCKS; b++) total[t][b] = izero();
    for (int32_t s = 0, stop; s < steps; s = stop) {
        stop = safe == INT32_MAX ? steps : lt_min(s + safe, steps);
        narrow sums[TILE_TOKENS][TILE_BLOCKS];
        tile_steps(weights + s, stop - s, codes + s * STEP, stride, tokens, sums);
#pragma GCC unroll 12
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 2
            for (int b = 0; b < TILE_BLOCKS; b++) total[t][b] = widen(total[t][b], sums[t][b]);
        if (safe == INT32_MAX) break;
    }
}

/* Tokens times the groups of a panel that begins at `first`. */
LT_INLINE void panel_times(const lt_op *op, const lt_step *step, const matrix *m, const panel weights, int32_t block,
                           int32_t blocks, int32_t first, int32_t chunks, int32_t token, int tokens,
                           float y[][TILE_BLOCKS][BLOCK]) {
    const int8_t *codes = (const int8_t *)lt_row(op, step, 1, token) + (int64_t)first * CHUNK;
    const char *act_scale = lt_row(op, step, 2, token), *act_sum = lt_row(op, step, 3, token);
    for (int32_t c = 0, g = first / m->group; c < chunks; c += m->group, g++) {
        i32x16 dot[TILE_TOKENS][TILE_BLOCKS];
        tile(weights + c * STEPS, lt_min(m->group, chunks - c) * STEPS, codes + c * CHUNK, op->arg[1].stride, tokens, dot);
        grid w[TILE_BLOCKS];
        for (int b = 0; b < TILE_BLOCKS; b++) w[b] = grid_at(m, block + lt_min(b, blocks - 1), g);
#pragma GCC unroll 12
        for (int t = 0; t < tokens; t++) {
            const float scale = *(const float *)(act_scale + t * op->arg[2].stride + g * (int64_t)sizeof(float));
            const float sum = *(const float *)(act_sum + t * op->arg[3].stride + g * (int64_t)sizeof(float));
#pragma GCC unroll 2
            for (int b = 0; b < TILE_BLOCKS; b++)
                vstore(y[t][b], add_group(vload(y[t][b]), dot[t][b], w[b], scale, sum));
        }
    }
}

/* Up to BATCH tokens times up to TILE_BLOCKS blocks; the last one fills the tile. */
static void blocks_times_batch(const lt_op *op, const lt_step *step, const matrix *m, int32_t block, int32_t blocks,
                               int32_t token, int32_t tokens) {
    panel weights __attribute__((aligned(VECTOR)));
    float y[BATCH][TILE_BLOCKS][BLOCK];
    memset(y, 0, (size_t)tokens * sizeof *y);
    for (int32_t t = 0; t < tokens; t++) /* what will be written: a page of its own each */
        __builtin_prefetch((float *)lt_row(op, step, 0, token + t) + block * BLOCK, 1);
    const int32_t at_once = PANEL / m->group * m->group;
    for (int32_t first = 0; first < m->chunks; first += at_once) {
        const int32_t chunks = lt_min(at_once, m->chunks - first);
        for (int32_t c = 0; c < chunks; c++)
            for (int32_t b = 0; b < TILE_BLOCKS; b++)
                decode_chunk(matrix_chunk(m, block + lt_min(b, blocks - 1), first + c), weights, c, b);
        int32_t t = 0;
#define TILES_OF(n)                                                                                             \
    for (; t + n <= tokens; t += n) panel_times(op, step, m, weights, block, blocks, first, chunks, token + t, n, y + t)
        TILES_OF(TILE_TOKENS);
        if (TILE_TOKENS > 4) TILES_OF(4);
        if (TILE_TOKENS > 2) TILES_OF(2);
        TILES_OF(1);
#undef TILES_OF
    }
    for (int32_t t = 0; t < tokens; t++)
        for (int32_t b = 0; b < blocks; b++) store_rows(op, step, token + t, block + b, m->rows, vload(y[t][b]));
}

static void linear_run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const matrix m = matrix_open(op, step, 4);
    const int32_t tokens = lt_rows(op, step), last = lt_min(end * BLOCKS_PER_PART, lt_ceil_div(m.rows, BLOCK));
    if (tokens == 1) {
        for (int32_t block = begin * BLOCKS_PER_PART; block < last; block++)
            block_times_token(op, step, &m, block, 0);
        return;
    }
    for (int32_t block = begin * BLOCKS_PER_PART; block < last; block += TILE_BLOCKS)
        for (int32_t t = 0; t < tokens; t += BATCH)
            blocks_times_batch(op, step, &m, block, lt_min(TILE_BLOCKS, last - block), t, lt_min(BATCH, tokens - t));
}

static inline int32_t linear_units(const lt_op *op, const lt_step *step) {
    return lt_rows(op, step) ? lt_ceil_div(op->arg[0].cols, BLOCK * BLOCKS_PER_PART) : 0;
}
