#include "cycle.h"
#include "serial.h"

#include <stdlib.h>
#include <string.h>

void kg_serial_init(kg_serial *s)
{
	pthread_mutex_init(&s->lock, NULL);
}

void kg_serial_free(kg_serial *s)
{
	pthread_mutex_destroy(&s->lock);
	free(s->text);
}

static int make_serial_room(kg_serial *s, size_t n)
{
	size_t room = 2 * s->room + n + 4096;
	char *more;

	if (s->bytes + n <= s->room)
		return 1;
	more = realloc(s->text, room);
	if (!more)
		return 0;
	s->text = more;
	s->room = room;
	return 1;
}

void kg_serial_put(kg_serial *s, const char *text, size_t n)
{
	UT_LOCK(&s->lock);
	if (!make_serial_room(s, n))
		return;
	memcpy(s->text + s->bytes, text, n);
	s->bytes += n;
}

size_t kg_take_serial(kg_vm *vm, char *to, size_t room)
{
	kg_serial *s = &vm->serial;
	size_t n;

	UT_LOCK(&s->lock);
	n = s->bytes < room ? s->bytes : room;
	memcpy(to, s->text, n);
	s->bytes -= n;
	memmove(s->text, s->text + n, s->bytes);
	return n;
}
