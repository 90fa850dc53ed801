/* embed(y, ids, data, scale, zero; group): rows of a matrix on uniform grids. Include as uniform.h. */
#include "uniform.h"

/* The code of a row of a block in a column of a chunk. */
static inline int32_t code_at(const uint8_t *chunk, int32_t row, int32_t col) {
    const int32_t step = col / 4, at = row * 4 + col % 4;
    const int32_t low = chunk[step * LOW / 8 * 64 + at] >> (step * LOW % 8) & ((1 << LOW) - 1);
    if (HIGH == 0) return low;
    return low | (chunk[LOW_BYTES + step * HIGH / 8 * 64 + at] >> (step * HIGH % 8) & ((1 << HIGH) - 1)) << LOW;
}

static inline void embed_run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const format m = uniform_open(op, step, 2);
    for (int32_t token = begin; token < end; token++) {
        const int32_t id = *(const int32_t *)lt_row(op, step, 1, token), block = id / ROWS, row = id % ROWS;
        float *y = lt_row(op, step, 0, token);
        for (int32_t c = 0; c < m.chunks; c++) {
            const grid g = grid_at(&m, block, c / m.group, 0);
            const uint8_t *chunk = chunk_at(&m, block, c);
            float scale[ROWS], zero[ROWS];
            vstore(scale, g.scale);
            vstore(zero, g.zero);
            const int32_t first = c * COLUMNS, last = lt_min(first + COLUMNS, op->arg[0].cols);
            for (int32_t i = first; i < last; i++)
                y[i] = ((float)code_at(chunk, row, i - first) - zero[row]) * scale[row];
#if NESTED && OFFSETS
            float offset[ROWS];
            vstore(offset, g.offset);
            for (int32_t i = first; i < last; i++) y[i] += offset[row];
#endif
        }
    }
}
