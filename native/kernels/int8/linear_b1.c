#define BITS 1
#include "../uniform_linear.h"

LT_KERNEL(linear_b1, linear_units, linear_run);
