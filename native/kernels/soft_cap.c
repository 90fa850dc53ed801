/* soft_cap(y, x; cap): y = cap * tanh(x / cap). */
#define EACH(op, x) vcap(x, (op)->f[0])
#include "each.h"

LT_KERNEL(soft_cap, lt_rows, run);
