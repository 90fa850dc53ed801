/* IEEE half float weights. */
#define ELEMENT uint16_t
#define LOAD vload_f16
#define LOADN vloadn_f16
#include "dense.h"
