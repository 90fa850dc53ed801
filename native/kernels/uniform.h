/* Weights on uniform grids, 1 to 6 bits each; runtime/formats/_uniform.py says how they lie. Include after defining
 * BITS. Scale and zero stand in the arguments `first` + 1 and + 2, behind the data. */
#pragma once
#include "f32x16.h"
#include "kernel.h"

/* Of a chunk: 32 columns of 16 rows are BITS vectors of 64 bytes. */
enum { COLUMNS = 32, STEPS = 8, BYTES = BITS * 64, ROWS = 16 };

/* A code's bits lie in one or two planes: its low bits, as many as divide a byte, and the rest. */
enum { LOW = BITS >= 4 ? 4 : BITS >= 2 ? 2 : 1, HIGH = BITS - LOW };

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

static inline const uint8_t *chunk_at(const format *f, int32_t block, int32_t chunk) {
    return f->data + ((int64_t)block * f->chunks + chunk) * BYTES;
}

static inline const uint8_t *group_at(const format *f, int32_t block, int32_t group, int32_t plane, int32_t chunks) {
    (void)plane, (void)chunks;
    return chunk_at(f, block, group * f->group);
}

typedef struct {
    f32x16 scale, zero;
} grid;

/* The grid of a block's weights in an activation group. */
static inline grid grid_at(const format *f, int32_t block, int32_t group, int32_t plane) {
    (void)plane;
    const int64_t at = ((int64_t)block * f->scales + (f->scales > 1 ? group : 0)) * ROWS;
    return (grid){f->scale ? vload_f16(f->scale + at) : vload(f->row_scale + at),
                  f->zero ? vload_f16(f->zero + at) : vset1(f->one_zero)};
}
