#define BITS 2
#include "../uniform_linear.h"

LT_KERNEL(linear_q2, linear_units, linear_run);
