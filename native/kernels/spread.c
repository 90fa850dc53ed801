/* spread(y, x, place): a copy of each row in all of its places. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        const int32_t *place = lt_row(op, step, 2, row);
        for (int32_t i = 0; i < op->arg[2].cols; i++)
            memcpy(lt_row(op, step, 0, place[i]), lt_row(op, step, 1, row), (size_t)op->arg[0].cols * sizeof(float));
    }
}

LT_KERNEL(spread, lt_rows, run);
