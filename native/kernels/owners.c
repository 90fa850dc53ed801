/* owners(owner, chosen, place): which expert each row in the order of experts belongs to. */
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    for (int32_t row = begin; row < end; row++) {
        const int32_t *chosen = lt_row(op, step, 1, row), *place = lt_row(op, step, 2, row);
        for (int32_t i = 0; i < op->arg[1].cols; i++) *(int32_t *)lt_row(op, step, 0, place[i]) = chosen[i];
    }
}

LT_KERNEL(owners, lt_rows, run);
