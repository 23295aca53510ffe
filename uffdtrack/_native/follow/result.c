#include "result.h"

#include "cleanup.h"
#include "methods.h"

static int count_touched(const ut_space *s, uint64_t *pages)
{
	AUTO_RUNS all = {0};

	*pages = 0;
	if (!s->harvest.by_news)
		return 0;
	TRY(runs_append(&all, &s->harvest.news.touched));
	TRY(runs_append(&all, &s->early.touched));
	runs_normalise(&all);
	*pages = runs_bytes(&all) / UT_PAGE;
	return 0;
}

int ut_space_result(ut_space *s, ut_result *out)
{
	const ut_finding *found = &s->harvest.all;

	out->reset.n = 0;
	TRY(runs_append(&out->reset, &found->gone));
	TRY(runs_append(&out->reset, &s->early.gone));
	TRY(runs_append(&out->reset, &found->fresh));
	runs_normalise(&out->reset);
	TRY(count_touched(s, &out->touched));
	out->unreadable = runs_bytes(&s->unreadable) / UT_PAGE;
	TRY(ut_space_give(s, &out->want, &out->data, &out->zero, &out->contents));
	out->bytes = runs_bytes(&out->data);
	return 0;
}

void ut_result_free(ut_result *r)
{
	runs_free(&r->want);
	runs_free(&r->data);
	runs_free(&r->zero);
	runs_free(&r->reset);
}
