#include "f8.h"

LT_KERNEL(embed_f8, lt_rows, embed_run);
