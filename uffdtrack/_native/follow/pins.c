#include "pins.h"
#include "cleanup.h"
#include "proc_stat.h"

#include <dirent.h>
#include <limits.h>
#include <string.h>

/* How their names in /proc/PID/fd begin. */
static const char *const names[] = {
	"anon_inode:[io_uring]", "anon_inode:[vfio", "/dev/vfio", "/dev/iommu", "/dev/vhost-vdpa",
	"/dev/infiniband/", "anon_inode:[infiniband", "/dev/video", "/dev/vbi", "/dev/sg", "/dev/bsg/",
};

int ut_may_pin(int pid)
{
	char path[64], name[PATH_MAX];
	struct dirent *entry;
	int tid = ut_live_thread(pid);

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd", pid, tid);
	AUTO_DIR dir = opendir(path);

	if (tid < 0 || !dir)
		return 1;
	while ((entry = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), entry->d_name, name, sizeof(name) - 1);

		if (n < 0)
			continue; /* . and .., or it has just been closed */
		name[n] = 0;
		for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
			if (!strncmp(name, names[i], strlen(names[i])))
				return 1;
	}
	return 0;
}

int ut_maps_pinning(const ut_maps *m)
{
	for (size_t i = 0; i < m->n; i++)
		if (m->regions[i].kind == UT_KIND_RING || m->regions[i].kind == UT_KIND_DEVICE)
			return 1;
	return 0;
}
