#include "compat.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

int ut_file_mode(int directory, const char *name, uint64_t *size)
{
	struct statx s;

	if (statx(directory, name, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_TYPE | STATX_MODE | STATX_SIZE, &s))
		return -errno;
	*size = s.stx_size;
	return s.stx_mode;
}
