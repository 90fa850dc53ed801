/* embed(y, ids, data, scale, zero; group): rows of a matrix on uniform grids. Include after defining BITS. */
#include "uniform.h"

/* The code of a row of a block in a column of a chunk. */
static inline int32_t code_at(const uint8_t *chunk, int32_t row, int32_t col) {
    const int32_t step = col / STEP, at = row * STEP + col % STEP;
    const int32_t low = chunk[step * LOW / 8 * VECTOR + at] >> (step * LOW % 8) & ((1 << LOW) - 1);
    if (HIGH == 0) return low;
    return low | (chunk[(LOW + step * HIGH / 8) * VECTOR + at] >> (step * HIGH % 8) & ((1 << HIGH) - 1)) << LOW;
}

static inline void embed_run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const matrix m = matrix_open(op, step, 2);
    for (int32_t token = begin; token < end; token++) {
        const int32_t id = *(const int32_t *)lt_row(op, step, 1, token), block = id / BLOCK, row = id % BLOCK;
        float *y = lt_row(op, step, 0, token);
        for (int32_t c = 0; c < m.chunks; c++) {
            const grid g = grid_at(&m, block, c / m.group);
            const uint8_t *chunk = matrix_chunk(&m, block, c);
            float scale[BLOCK], zero[BLOCK];
            vstore(scale, g.scale);
            vstore(zero, g.zero);
            for (int32_t i = c * CHUNK; i < lt_min((c + 1) * CHUNK, op->arg[0].cols); i++)
                y[i] = ((float)code_at(chunk, row, i - c * CHUNK) - zero[row]) * scale[row];
        }
    }
}
