/* gelu_tanh(y, x): y = gelu(x). */
#define EACH(op, x) gelu_tanh(x)
#include "gelu.h"

#include "each.h"

LT_KERNEL(gelu_tanh, lt_rows, run);
