/* What Python sees of the C core. cffi checks each line against the headers when it builds. */
typedef struct {
	uint64_t start, end;
} ut_run;
typedef struct {
	ut_run *v;
	size_t n;
	...;
} ut_runs;

typedef struct {
	uint64_t start, end, offset, inode;
	uint32_t major, minor;
	uint8_t prot;
	uint8_t shared, kind, in_memory;
	uint32_t name;
	...;
} ut_region;
typedef struct {
	char *text;
	size_t len;
	ut_region *regions;
	size_t n;
	...;
} ut_maps;
int ut_maps_parse(ut_maps *m);
int ut_maps_look(ut_maps *m, int pid, int tid);
void ut_maps_free(ut_maps *m);

typedef struct {
	uint64_t area;
	uint32_t size, signature;
	...;
} ut_registration;
typedef struct {
	int32_t tid;
	uint32_t state;
	uint64_t sigmask;
	uint64_t regs[27];
	uint32_t xstate_len;
	uint32_t worker;
	ut_registration rseq;
	int32_t stood;
	...;
} ut_thread;
typedef struct {
	int32_t busy_tid;
	int64_t busy_nr;
	...;
} ut_calls;
typedef struct {
	int32_t pid;
	int32_t pidfd;
	int32_t exit_status;
	ut_thread *threads;
	size_t n;
	uint8_t *xstate;
	size_t xstate_stride;
	ut_calls calls;
	...;
} ut_tracee;
#define UT_BUSY ...
#define UT_ESCORT_SUPERVISED ...
#define UT_ESCORT_FAULT ...
#define UT_CALL_LEAVE ...
#define UT_CALL_WAIT ...
#define UT_CALL_ANEW ...
#define UT_CALL_FILE ...
#define UT_CALL_DRIVER ...
int ut_call_rule(int64_t nr);
#define UT_THREAD_ASKED ...
#define UT_THREAD_STOPPED ...
#define UT_THREAD_DEAD ...
#define UT_THREAD_RUNNING ...
int ut_tracee_open(int pid, ut_tracee **out);
void ut_tracee_close(ut_tracee *t);
int ut_tracee_stop(ut_tracee *t, int64_t timeout_ns);
int ut_await_calls_of(ut_tracee *const *v, size_t n, int64_t timeout_ns, size_t *at);
int ut_tracee_stop_now(ut_tracee *t, int64_t timeout_ns);
int ut_tracee_resume(ut_tracee *t);
int ut_tracee_settle(ut_tracee *t, int64_t timeout_ns);
int ut_live_thread(int pid);
int ut_tracee_index(const ut_tracee *t, int tid);
int ut_inject_begin(ut_tracee *t, size_t index);
int ut_inject_begin_any(ut_tracee *t);
int ut_inject(ut_tracee *t, size_t index, int64_t nr, const uint64_t args[6], int64_t *result);
int ut_inject_exit(ut_tracee *t, size_t index);
int ut_inject_end(ut_tracee *t, size_t index);
int ut_tracee_set(ut_tracee *t, size_t index, const uint64_t *regs, const uint8_t *xstate,
		  size_t xstate_len, uint64_t sigmask);
int ut_rseq_keep(ut_tracee *t);
int ut_rseq_put(ut_tracee *t);
int ut_same_memory(int a, int b);
int ut_dumps_core(int pid);
void ut_keep(int child, int to);
int ut_remote_write(int pid, uint64_t at, const void *from, size_t n);
int ut_attach_uffd(int pid, int user_mode_only);
int ut_attach_late(void);

#define UT_OVERDUE ...
#define UT_UNGUARDED ...
#define UT_GUARD_FREE ...
#define UT_GUARD_LATE ...
#define UT_GUARD_STOPPING ...
#define UT_GUARD_STOPPED ...
typedef struct {
	int32_t stopper, target;
	int32_t phase, injecting;
	int64_t stood_ns;
} ut_guard_verdict;
int ut_guard_start(int64_t max_stop_ns);
void ut_guard_leave(void);
void ut_guard_forget(void);
int ut_guard_verdict_of(int pid, ut_guard_verdict *out);
int64_t ut_guard_max_ns(void);
int ut_tracee_overdue(const ut_tracee *t);

#define UT_FULL ...
#define UT_RUNNING ...
#define UT_NO_COPY ...
#define UT_NEW_MM ...
#define UT_SECCOMP ...
#define UT_KIND_ANON ...
#define UT_KIND_FILE ...
#define UT_KIND_SHARED ...
#define UT_KIND_VDSO ...
#define UT_KIND_KERNEL ...
#define UT_KIND_VIEW ...
#define UT_KIND_DEVICE ...
#define UT_KIND_SECRET ...
#define UT_KIND_RING ...
#define UT_KIND_DELETED ...
#define UT_KIND_ELSEWHERE ...
#define UT_KIND_HUGE ...
typedef struct {
	uint64_t inode;
	uint32_t major, minor;
	uint8_t page[4096];
} ut_head;
typedef struct {
	ut_head *v;
	size_t n;
	...;
} ut_heads;
typedef struct {
	int32_t short_of;
	...;
} ut_thread_rings;
typedef struct {
	int32_t sync, full;
	ut_thread_rings rings;
	...;
} ut_watch;
typedef struct {
	ut_runs touched;
	...;
} ut_news;
typedef struct {
	...;
} ut_claims;
typedef struct {
	uint64_t start, end, address;
	int32_t member;
} ut_elsewhere;
typedef struct {
	ut_runs want, gone, fresh;
	int32_t compared;
	...;
} ut_finding;
typedef struct {
	int32_t by_news;
	ut_news news;
	ut_finding all;
	uint64_t left_alone;
	ut_elsewhere *elsewhere;
	size_t nelsewhere;
	...;
} ut_harvest;
typedef struct {
	uint8_t *v;
	size_t cap;
} ut_buffer;
typedef struct {
	int32_t shared;
	...;
} ut_reader;
typedef struct {
	ut_runs spans;
	...;
} ut_history;
typedef struct {
	ut_buffer merged;
	ut_runs gone, touched;
	uint64_t least;
	int32_t behind;
	...;
} ut_early;
typedef struct {
	int32_t uffd, sync;
	ut_reader reader;
	ut_maps maps, before;
	ut_heads heads;
	ut_history history;
	ut_harvest harvest;
	ut_early early;
	ut_buffer buffer;
	ut_runs unreadable;
	ut_watch *watch;
	int32_t may_share, shared_wanted;
	int64_t stood_ns, longest_ns;
	...;
} ut_space;
typedef struct {
	int64_t stop_ns, harvest_ns, rearm_ns, copy_ns, pause_ns, longest_ns;
} ut_times;
void ut_watch_passed_over(ut_watch *w);
int ut_space_is_gone(const ut_space *s);
int ut_space_open(int pid, int uffd, int diff_all, ut_space **out);
void ut_space_close(ut_space *s);
int ut_space_share(ut_space *s, int uffd);
int ut_space_watch(ut_space *s, int sync, uint64_t limit);
int ut_space_harvest(ut_space *s, int flags);
int ut_space_copy(ut_space *s, const ut_run *runs, size_t n);
typedef struct {
	ut_runs want, data, zero, reset;
	uint8_t *contents;
	uint64_t bytes, touched, unreadable;
} ut_result;
int ut_space_result(ut_space *s, ut_result *out);
void ut_result_free(ut_result *r);
int ut_barrier(ut_tracee *t, ut_space *s, int64_t timeout_ns);
int ut_look_early(ut_space *s, ut_tracee *t, int64_t timeout_ns, ut_runs *want);
void ut_stopping(ut_space *s);
void ut_resumed(ut_space *s);
int ut_look(ut_tracee *t, ut_space *s, ut_times *times);
/* sync, in a stop: let these pages be read and written by /proc/PID/mem, for which our thread gives no answer. They count as
 * written; what is not there becomes zeros. Else it does nothing. */
int ut_untrap(ut_space *s, const ut_run *runs, size_t n);
int ut_window(ut_tracee *t, ut_space *s, int flags, const ut_run *pending, size_t npending,
	      int64_t timeout_ns, ut_times *times);
typedef struct {
	ut_result result;
	ut_buffer buffer;
	ut_times times;
	ut_thread *threads;
	uint8_t *xstate;
	size_t nthreads;
	int64_t ran_ns, time_ns, late;
	int32_t compared, by_news;
	...;
} ut_taken;
typedef struct {
	ut_taken v[...];
	size_t n;
	int32_t anew, failed;
	int64_t patience_ns, every_ns, due_ns;
	size_t nfds;
	int32_t fds[...];
} ut_series;
void ut_series_take(ut_tracee *t, ut_space *s, ut_series *q, size_t most, int64_t timeout_ns);
void ut_series_free(ut_series *q);
typedef struct {
	ut_tracee *tracee;
	ut_space *space;
	const ut_run *pending;
	size_t npending;
	int32_t flags, result;
	ut_times times;
} ut_member_window;
typedef struct {
	int32_t *v;
	size_t n;
	...;
} ut_pids;
int ut_pids_push(ut_pids *p, int pid);
int ut_tree_window(ut_member_window *v, size_t n, ut_claims *claims, const ut_pids *ours, int adopter, int without,
		   int64_t timeout_ns, ut_pids *born, size_t *failed, ut_times *times);
int ut_adopt_orphans(void);
void ut_pids_free(ut_pids *p);
void ut_claims_free(ut_claims *c);
void ut_space_join(ut_space *s, ut_claims *claims, int member);
int ut_buffer_ready(ut_buffer *b, size_t bytes);
void ut_buffer_free(ut_buffer *b);
int ut_split_zero(uint8_t *buf, const ut_runs *runs, ut_runs *data, ut_runs *zero);

typedef struct {
	int64_t fd, offset;
} ut_place;
#define UT_DIFFERS ...
#define UT_UNREADABLE ...
int ut_read_places(const ut_place *places, size_t n, uint8_t *out);
int ut_is_alone(int pid, int tid);
int ut_compare(int mem, int tid, const uint64_t *pages, const ut_place *places, size_t n, uint8_t *out, uint8_t *held);
int ut_compare_copies(const uint8_t *copies, const ut_place *places, size_t n, uint8_t *out);
int ut_write_pages(int mem, int tid, const uint64_t *pages, const uint8_t *contents, size_t n);
int ut_exist(int pagemap, uint64_t start, uint64_t end, ut_runs *any, ut_runs *own);

int64_t ut_differences(const uint8_t *pages, size_t n, uint8_t *copies, const int64_t *old, const int64_t *keep,
		       unsigned int limit, uint8_t *out, uint16_t *differing, uint64_t *checks);
int ut_xor_differences(uint8_t *to, const int64_t *rows, size_t n, const uint8_t *from, size_t size);
int64_t ut_places_of(const uint64_t *pages, const int64_t *places, size_t n, const uint64_t *wanted, size_t nwanted,
		     int64_t *out);
void ut_places_fill(uint8_t *to, const int64_t *places, size_t n, const uint8_t *from);
size_t ut_places_exchange(const uint64_t *pages, int64_t *places, size_t n, const uint64_t *later,
			  int64_t *later_places, size_t nlater, int64_t *room);
typedef struct {
	uint64_t first, pages;
	uint8_t *at;
} ut_extent;
int ut_have_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n);
void ut_put_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n, const uint8_t *from,
		  const int64_t *places);
int64_t ut_xor_pages(const ut_extent *of, size_t nof, const uint64_t *pages, const uint64_t *checks, size_t n,
		     const uint8_t *from, size_t size);
int64_t ut_take_pages(const ut_extent *of, size_t nof, const uint64_t *pages, size_t n, uint8_t *to, uint8_t *full);
size_t ut_copy_changed(const uint8_t *pages, size_t n, uint8_t *copies, int64_t *rows);
void ut_page_checks(const uint8_t *pages, const int64_t *rows, size_t n, uint64_t *out);
#define UT_STRETCH ...
#define UT_DIFFERENCE ...
#define UT_NOT_CLOSE ...

void runs_free(ut_runs *r);

struct uffdio_api {
	uint64_t api, features, ioctls;
};
#define UFFD_API ...
#define UFFDIO_API ...
#define UFFD_FEATURE_PAGEFAULT_FLAG_WP ...
#define UFFD_FEATURE_EVENT_FORK ...
#define UFFD_FEATURE_EVENT_REMAP ...
#define UFFD_FEATURE_EVENT_REMOVE ...
#define UFFD_FEATURE_MISSING_HUGETLBFS ...
#define UFFD_FEATURE_MISSING_SHMEM ...
#define UFFD_FEATURE_EVENT_UNMAP ...
#define UFFD_FEATURE_SIGBUS ...
#define UFFD_FEATURE_THREAD_ID ...
#define UFFD_FEATURE_MINOR_HUGETLBFS ...
#define UFFD_FEATURE_MINOR_SHMEM ...
#define UFFD_FEATURE_EXACT_ADDRESS ...
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM ...
#define UFFD_FEATURE_WP_UNPOPULATED ...
#define UFFD_FEATURE_WP_ASYNC ...
#define UT_PAGEMAP_SCAN ...
int ut_uffd_api(int fd, uint64_t features, uint64_t *supported);

typedef struct {
	char *v;
	size_t n;
	...;
} ut_text;

void ut_text_free(ut_text *t);
int ut_file_mode(int directory, const char *name, uint64_t *size);
int ut_descriptors(int task, ut_text *out);

int ut_probe_uffd(int user_mode_only, uint64_t *features);
int ut_probe_wp_async(int user_mode_only);
int ut_probe_zapped_pmd(int user_mode_only, int huge);
int ut_probe_guard(int user_mode_only);
int ut_probe_pagemap_scan(void);
int ut_probe_pidfd_getfd(void);
int ut_probe_ptrace(void);
int ut_probe_suspend_seccomp(void);
int ut_probe_perf_faults(void);

#define UT_RING ...
#define UT_SCAN ...
#define UT_SYNC ...
#define UT_INLINE ...
#define UT_MAX_VCPUS ...
#define UT_MAX_SLOTS ...
#define UT_HOST ...
#define UT_VCPU_FREE ...
#define UT_VCPU_BOUND ...
#define UT_VCPU_GONE ...
typedef struct {
	uint64_t bytes, npages, capacity;
	...;
} ut_shared;
int ut_shared_create(int engine, int nvcpus, int mms, uint64_t npages, uint64_t capacity, int *fd,
		     ut_shared **out);
int ut_shared_map(int fd, ut_shared **out);
void ut_shared_unmap(ut_shared *s);
void ut_vcpu_bind(ut_shared *s, int vcpu, int pid, int tid, int forced);
int ut_vcpu_state(ut_shared *s, int vcpu);
int ut_vcpu_tid(const ut_shared *s, int vcpu);
uint32_t ut_vcpu_stands(ut_shared *s, int vcpu);
int ut_member_open(ut_shared *s, uint8_t *base, int mm, int uffd, int lifeline);
void ut_member_close(int member);
void ut_member_perf(int member, int vcpu, int perf);

typedef struct {
	uint64_t gfn, row, npages;
} ut_slot;
typedef struct {
	uint64_t cycles, pages, duplicates, scans, lost, audits, overflows, carried, everything;
	uint64_t rearm_calls, rearm_pages, false_full;
} ut_stats;
typedef struct {
	uint64_t *gfn;
	int32_t *vcpu;
	size_t n;
} ut_log;
typedef struct {
	ut_log log[2];
	uint64_t number;
	int32_t open;
	...;
} ut_cycle;
typedef struct {
	ut_cycle cycle;
	ut_stats stats;
	...;
} ut_tracker;
int ut_own_uffd(int engine);
uint64_t ut_engine_features(int engine);
int ut_arm(int uffd, uint64_t base, uint64_t bytes);
size_t ut_arena_bytes(const ut_shared *s);
int ut_tracker_open(ut_shared *s, const ut_slot *slots, int nslots, void *arena, ut_tracker **out);
void ut_tracker_close(ut_tracker *t);
void ut_tracker_free(ut_tracker *t);
void ut_tracker_forked(ut_tracker *t);
int ut_tracker_add(ut_tracker *t, int mm, int uffd, int pagemap, uint64_t base, int vcpu);
int ut_tracker_events(ut_tracker *t, int vcpu, int mm, int min, int maj, int count);
int ut_tracker_drop(ut_tracker *t, int vcpu, int died);
int64_t ut_prepare(ut_tracker *t);
int64_t ut_fetch(ut_tracker *t, uint64_t max, uint64_t *first);
void ut_fetch_again(ut_tracker *t);
int ut_rearm(ut_tracker *t, const uint64_t *gfn, size_t n);
int64_t ut_exchange(ut_tracker *t);
int64_t ut_exchange_into(ut_tracker *t, const uint8_t *ram, uint8_t *to, size_t room);
int64_t ut_pending(ut_tracker *t);
int ut_wait_full(ut_tracker *t, int64_t timeout_ns, int64_t stop_ns);
int ut_pause(ut_tracker *t, int64_t timeout_ns);
void ut_gate_open(ut_shared *s);
int ut_resume(ut_tracker *t);
void ut_let_run(ut_tracker *t);
void ut_set_halted(ut_tracker *t, int halted);
uint32_t ut_gate_full(ut_shared *s);
int ut_set_threshold(ut_tracker *t, int64_t pages);
int64_t ut_threshold(const ut_shared *s);
int ut_host_write(ut_tracker *t, uint64_t index, uint64_t n);
#define UT_NEVER ...
int ut_ring_wait(ut_tracker *t, int64_t timeout_ns);
int ut_ring_open(int tid, int threshold, int signal_tid, uint32_t wake_bytes, int *out);

#define UT_BREAK_FORGET ...
#define UT_BREAK_REARM ...
#define UT_BREAK_LATE_REARM ...
#define UT_BREAK_COMPARE ...
#define UT_BREAK_AUDIT ...
#define UT_BREAK_EVENTS ...
#define UT_BREAK_HANDLER ...
#define UT_BREAK_HOLD ...
#define UT_BREAK_ORDER ...
#define UT_BREAK_CLAIM ...
#define UT_BREAK_EARLY ...
#define UT_BREAK_DELAY ...
#define UT_BREAK_BARRIER ...
#define UT_BREAK_REFUSE ...
#define UT_BREAK_SHARERS ...
#define UT_BREAK_LATE_TAKE ...
#define UT_BREAK_DUE ...
#define UT_BREAK_LISTING ...
#define UT_BREAK_SERIES ...
#define UT_BREAK_THIRD ...
#define UT_BREAK_DEVICE ...
void ut_break(uint32_t what);

#define SYS_brk ...
#define SYS_close ...
#define SYS_madvise ...
#define SYS_mlock2 ...
#define SYS_mmap ...
#define SYS_mprotect ...
#define SYS_mremap ...
#define SYS_munlock ...
#define SYS_munmap ...
#define SYS_openat ...
#define SYS_pkey_mprotect ...
#define SYS_prctl ...
#define SYS_rseq ...
#define SYS_rt_sigsuspend ...
#define SYS_wait4 ...
#define SYS_waitid ...
