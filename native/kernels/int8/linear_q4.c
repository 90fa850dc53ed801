#define BITS 4
#include "../uniform_linear.h"

LT_KERNEL(linear_q4, linear_units, linear_run);
