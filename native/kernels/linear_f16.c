#include "f16.h"

LT_KERNEL(linear_f16, linear_units, linear_run);
