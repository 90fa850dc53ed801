/* Weights on uniform grids, 1 to 6 or 8 bits each; runtime/formats/_uniform.py says how they lie. Include after defining
 * BITS. Scale and zero stand in the arguments `first` + 1 and + 2, behind the data.
 *
 * With NESTED, which gives the columns of a group, scales are codes themselves, and so are offsets if there are OFFSETS:
 * see _nested.py. In the arguments behind the data stand these codes and their steps. */
#pragma once
#include "f32x16.h"
#include "kernel.h"

#ifndef NESTED
#define NESTED 0
#endif

/* Of a chunk of 16 rows: steps of four columns. */
enum { COLUMNS = NESTED ? NESTED : 32, STEPS = COLUMNS / 4, BYTES = BITS * COLUMNS * 2, ROWS = 16 };

/* A code's bits lie in one or two planes: its low bits, as many as divide a byte, and the rest. */
enum { LOW = BITS >= 4 ? 4 : BITS >= 2 ? 2 : 1, HIGH = BITS - LOW, LOW_BYTES = LOW * COLUMNS * 2 };

#if NESTED
typedef struct {
    const uint8_t *data;  /* [blocks][groups][BYTES] */
    const int8_t *scale;  /* [blocks][groups][GRIDS][16]: a group's scales, and its offsets */
    const uint16_t *unit; /* f16 [blocks][super-blocks][GRIDS][16]: of these */
    int32_t chunks, supers;
    int32_t shift;         /* a super-block has 2^shift groups */
    int32_t group, planes; /* 1, 1 */
} format;

enum { GRIDS = OFFSETS ? 2 : 1 };

static inline format uniform_open(const lt_op *op, const lt_step *step, int first) {
    const lt_arg *data = &op->arg[first], *unit = data + 2;
    format f = {.data = lt_row(op, step, first, 0), .chunks = data->cols / BYTES, .supers = unit->cols / (GRIDS * ROWS)};
    f.group = f.planes = 1;
    f.scale = lt_row(op, step, first + 1, 0);
    f.unit = lt_row(op, step, first + 2, 0);
    while (f.supers << f.shift < f.chunks) f.shift++;
    return f;
}

typedef struct {
    f32x16 scale, zero, offset;
} grid;

/* The grid of a block's weights in a group: without offsets the middle of the codes is 0. */
static inline grid grid_at(const format *f, int32_t block, int32_t group, int32_t plane) {
    (void)plane;
    const int8_t *scale = f->scale + ((int64_t)block * f->chunks + group) * GRIDS * ROWS;
    const uint16_t *unit = f->unit + ((int64_t)block * f->supers + (group >> f->shift)) * GRIDS * ROWS;
    __builtin_prefetch(scale + SCALES_AHEAD);
    return (grid){vmul(vload_f16(unit), vload_i8(scale)), vset1(OFFSETS ? 0 : 1 << (BITS - 1)),
                  OFFSETS ? vmul(vload_f16(unit + ROWS), vload_i8(scale + ROWS)) : vset1(0)};
}
#else
typedef struct {
    const uint8_t *data;    /* [blocks][chunks][BITS vectors][16 rows][4] */
    const uint16_t *scale;  /* f16 [blocks][groups][16], if a row has several */
    const float *row_scale; /* f32 [blocks][16], if it has one */
    const uint16_t *zero;   /* f16, as many as scales, or NULL: one for all */
    float one_zero;
    int32_t chunks, scales; /* of a row */
    int32_t group, planes;  /* chunks that share an activation scale; 1 */
} format;

static inline format uniform_open(const lt_op *op, const lt_step *step, int first) {
    const lt_arg *data = &op->arg[first], *scale = data + 1, *zero = data + 2;
    format f = {.data = lt_row(op, step, first, 0), .chunks = data->cols / BYTES, .scales = scale->cols / ROWS};
    f.planes = 1;
    f.group = op->dim[0] ? op->dim[0] / COLUMNS : f.chunks;
    if (f.scales > 1) f.scale = lt_row(op, step, first + 1, 0);
    else f.row_scale = lt_row(op, step, first + 1, 0);
    if (zero->cols > 1) f.zero = lt_row(op, step, first + 2, 0);
    else f.one_zero = *(const float *)lt_row(op, step, first + 2, 0);
    return f;
}

typedef struct {
    f32x16 scale, zero;
} grid;

/* The grid of a block's weights in an activation group. */
static inline grid grid_at(const format *f, int32_t block, int32_t group, int32_t plane) {
    (void)plane;
    const int64_t at = ((int64_t)block * f->scales + (f->scales > 1 ? group : 0)) * ROWS;
    if (f->scale) __builtin_prefetch(f->scale + at + SCALES_AHEAD / 2);
    return (grid){f->scale ? vload_f16(f->scale + at) : vload(f->row_scale + at),
                  f->zero ? vload_f16(f->zero + at) : vset1(f->one_zero)};
}
#endif

static inline const uint8_t *chunk_at(const format *f, int32_t block, int32_t chunk) {
    return f->data + ((int64_t)block * f->chunks + chunk) * BYTES;
}

static inline const uint8_t *group_at(const format *f, int32_t block, int32_t group, int32_t plane, int32_t chunks) {
    (void)plane, (void)chunks;
    return chunk_at(f, block, group * f->group);
}
