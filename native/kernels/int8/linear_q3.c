#define BITS 3
#include "../uniform_linear.h"

LT_KERNEL(linear_q3, linear_units, linear_run);
