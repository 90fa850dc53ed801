#include "t5.h"

LT_KERNEL(linear_t5, linear_units, linear_run);
