#include "f8.h"

LT_KERNEL(linear_f8, linear_units, linear_run);
