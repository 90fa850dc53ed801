/* positions(y, ids; offset): each row's position, counted from the offset. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        int32_t *y = lt_row(op, step, 0, row);
        *y = step->pos + row + op->dim[0];
    }
}

LT_KERNEL(positions, lt_rows, run);
