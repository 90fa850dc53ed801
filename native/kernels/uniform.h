/* Weights on a uniform grid, 1 to 8 bits, with scales per group of columns; runtime/formats/uniform.py says how they
 * lie. Include after defining BITS. */
#pragma once
#include "f32x16.h"
#include "kernel.h"

enum {
    BLOCK = 16,                /* output rows in a block */
    CHUNK = 32,                /* columns of a block that make BITS vectors */
    VECTOR = 64,               /* bytes */
    STEP = 4,                  /* columns of a step: one dot4 */
    STEPS = CHUNK / STEP,      /* of a chunk */
    CHUNK_BYTES = BITS * VECTOR,
};

/* A code's bits lie in one or two planes: its low bits, as many as divide a byte, and the rest. */
enum { LOW = BITS >= 4 ? 4 : BITS >= 2 ? 2 : 1, HIGH = BITS - LOW };

typedef struct {
    const uint8_t *data;  /* [blocks][chunks][BITS vectors][16 rows][4] */
    const uint16_t *scale; /* f16 [blocks][groups][16], if there are several */
    const float *row_scale; /* f32 [blocks][16], if there is one */
    const uint16_t *zero;  /* f16, as scale, or NULL: one for all */
    float one_zero;
    int32_t rows, chunks;
    int32_t group;  /* chunks that share an activation scale */
    int32_t scales; /* of a row: one per group, or one */
} matrix;

/* `first` is the argument that holds the data; scale and zero follow it. */
static inline matrix matrix_open(const lt_op *op, const lt_step *step, int first) {
    const lt_arg *data = &op->arg[first], *scale = data + 1, *zero = data + 2;
    matrix m = {.data = lt_row(op, step, first, 0), .rows = op->arg[0].cols, .chunks = data->cols / CHUNK_BYTES};
    m.group = op->dim[0] / CHUNK;
    m.scales = scale->cols / BLOCK;
    if (m.scales > 1) m.scale = lt_row(op, step, first + 1, 0);
    else m.row_scale = lt_row(op, step, first + 1, 0);
    if (zero->cols > 1) m.zero = lt_row(op, step, first + 2, 0);
    else m.one_zero = *(const float *)lt_row(op, step, first + 2, 0);
    return m;
}

static inline const uint8_t *matrix_chunk(const matrix *m, int32_t block, int32_t chunk) {
    return m->data + ((int64_t)block * m->chunks + chunk) * CHUNK_BYTES;
}

typedef struct {
    f32x16 scale, zero;
} grid;

/* The grid of a block's weights in an activation group. */
static inline grid grid_at(const matrix *m, int32_t block, int32_t group) {
    const int64_t at = ((int64_t)block * m->scales + (m->scales > 1 ? group : 0)) * BLOCK;
    return (grid){m->scale ? vload_f16(m->scale + at) : vload(m->row_scale + at),
                  m->zero ? vload_f16(m->zero + at) : vset1(m->one_zero)};
}
