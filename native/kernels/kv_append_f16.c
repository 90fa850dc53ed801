#include "kv_f16.h"
#include "kv_append.h"

LT_KERNEL(kv_append_f16, lt_rows, run);
