/* A kernel on experts' matrices: each row meets the one it has chosen.
 *
 * The rows lie in the order of the experts (line_up in runtime/ops.py), so those of one expert are a range, and the
 * kernel runs on each range as if that were all: only matrices that were chosen are read. */
#pragma once
#include "kernels/kernel.h"

int32_t lt_experts_units(const lt_kernel *kernel, const lt_op *op, const lt_step *step);
void lt_experts_run(const lt_kernel *kernel, const lt_op *op, const lt_step *step, int32_t begin, int32_t end);
