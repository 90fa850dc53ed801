#define BITS 5
#define WHOLE 0
#include "uniform.h"

LT_KERNEL(linear_q5, linear_units, linear_run);
