/* gelu_tanh_mul(y, gate, up): y = gelu(gate) * up. */
#define GATED(op, gate, up) vmul(gelu_tanh(gate), up)
#include "gelu.h"

#include "gated.h"

LT_KERNEL(gelu_tanh_mul, lt_rows, run);
