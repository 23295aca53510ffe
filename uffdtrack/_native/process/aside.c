#include "aside.h"
#include "cleanup.h"
#include "proc_stat.h"

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Without it a thread cannot be given its priority back. */
static int may_give_back(void)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct data[2] = {0};

	return !syscall(SYS_capget, &head, data) && data[0].effective >> CAP_SYS_NICE & 1;
}

static int set_policy(int tid, int policy, int nice)
{
	struct sched_param p = {0};

	/* The policy alone would not take a processor away from a thread that has it. */
	return sched_setscheduler(tid, policy, &p) || setpriority(PRIO_PROCESS, tid, nice);
}

void ut_step_aside(ut_aside *a)
{
	int own = syscall(SYS_gettid), tid;
	AUTO_DIR dir = ut_open_tasks(getpid());

	a->n = 0;
	if (!dir || !may_give_back())
		return;
	while (a->n < UT_ASIDE && (tid = ut_next_task(dir))) {
		int policy = sched_getscheduler(tid);

		if (tid == own || (policy != SCHED_OTHER && policy != SCHED_IDLE))
			continue;
		a->thread[a->n].tid = tid;
		/* One that has it from a thread that stood aside when it was born. */
		a->thread[a->n++].nice = policy == SCHED_IDLE ? 0 : getpriority(PRIO_PROCESS, tid);
		set_policy(tid, SCHED_IDLE, 19);
	}
}

void ut_step_back(ut_aside *a)
{
	for (; a->n; a->n--)
		set_policy(a->thread[a->n - 1].tid, SCHED_OTHER, a->thread[a->n - 1].nice); /* it may have ended */
}

void ut_set_urgent(int urgent)
{
	struct sched_param p = {.sched_priority = urgent ? 1 : 0};

	sched_setscheduler(0, urgent ? SCHED_FIFO : SCHED_OTHER, &p);
}
