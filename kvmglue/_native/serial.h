#ifndef KG_SERIAL_H
#define KG_SERIAL_H
#include "vm.h"

void kg_serial_init(kg_serial *s);
void kg_serial_free(kg_serial *s);
/* Drops the text if there is no memory. */
void kg_serial_put(kg_serial *s, const char *text, size_t n);
#endif
