#define BITS 6
#include "../uniform_linear.h"

LT_KERNEL(linear_q6, linear_units, linear_run);
