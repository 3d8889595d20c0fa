//! The functions that are passed on. None of them reads anything but its arguments, waits, tells of the session or the
//! server, or makes large values out of small ones; so a new one goes on the lists only if that is true of it.

use super::Kind;

const BOTH: &str = "\
abs acos asin atan atan2 avg bit_count cbrt ceil ceiling coalesce concat corr cos cosh count covar_pop covar_samp \
cume_dist current_date current_timestamp date_diff date_trunc degrees dense_rank exp first_value floor from_unixtime \
greatest grouping histogram if lag last_value lead least length ln log log10 log2 lower ltrim max md5 min mod now \
nth_value ntile nullif percent_rank pi position pow power radians rank regexp_replace replace reverse round row_number \
rtrim sha1 sha256 sha512 sign sin sinh sqrt stddev_pop stddev_samp substr substring sum tan tanh translate trim upper \
var_pop var_samp";

const TRINO: &str = "\
all_match any_match any_value approx_distinct approx_most_frequent approx_percentile arbitrary array_agg array_distinct \
array_except array_intersect array_join array_max array_min array_position array_sort array_union arrays_overlap \
at_timezone bit_length bool_and bool_or cardinality char_length character_length checksum chr codepoint contains \
count_if date date_add date_format date_parse day day_of_month day_of_week day_of_year element_at ends_with every \
filter format_datetime from_base64 from_hex from_iso8601_date from_iso8601_timestamp from_unixtime_nanos geometric_mean \
hour is_json_scalar is_nan is_finite is_infinite json_array_contains json_array_get json_array_length json_exists \
json_extract json_extract_scalar json_format json_parse json_query json_size json_value kurtosis last_day_of_month \
levenshtein_distance listagg map_agg map_filter map_keys map_values max_by millisecond min_by minute month \
nan none_match parse_datetime quarter reduce regexp_count regexp_extract regexp_extract_all regexp_like regexp_position \
regexp_split regr_intercept regr_slope second skewness slice soundex split split_part starts_with stddev strpos \
to_base64 to_hex to_iso8601 to_unixtime transform truncate try typeof url_decode url_encode url_extract_fragment \
url_extract_host url_extract_parameter url_extract_path url_extract_port url_extract_protocol url_extract_query \
variance week week_of_year width_bucket with_timezone year year_of_week yow";

const CLICKHOUSE: &str = "\
adddays addhours addminutes addmonths addseconds addweeks addyears any anylast argmax argmin arrayconcat arraycount \
arraydistinct arrayelement arrayexists arrayfilter arrayfirst arrayjoin arraymap arraymax arraymin arraysort \
arraystringconcat arraysum avgif base64decode base64encode cityhash64 countif cutquerystring datediff \
datename dateadd datesub domain domainwithoutwww empty endswith extract extractall extracturlparameter formatdatetime \
fromunixtimestamp fromunixtimestamp64milli grouparray groupuniqarray has hasall hasany hex ifnull \
intdiv isfinite isinfinite isnan isnotnull isnull json_exists json_query json_value jsonextract jsonextractarrayraw \
jsonextractbool jsonextractfloat jsonextractint jsonextractkeys jsonextractraw jsonextractstring jsonextractuint \
jsonhas jsonlength jsontype kurtpop lengthutf8 like lowerutf8 match maxif maxmap median minif multiif multisearchany \
not notempty notlike nullif path positioncaseinsensitive protocol quantile quantileexact quantiles quantiletdigest \
querystring rand replaceall replaceone replaceregexpall replaceregexpone reverseutf8 simplejsonextractbool \
simplejsonextractfloat simplejsonextractint simplejsonextractraw simplejsonextractstring simplejsonhas splitbychar \
splitbystring startswith stddevpop stddevsamp subtractdays subtracthours subtractminutes subtractmonths \
subtractseconds subtractweeks substringutf8 sumif sumifornull sumornull todate todate32 todatetime todatetime64 \
todayofmonth todayofweek todayofyear todecimal128 todecimal32 todecimal64 tofloat32 tofloat64 tohour toint16 toint32 \
toint64 toint8 tointervalday tointervalhour tointervalminute tointervalmonth tointervalsecond tointervalweek tominute \
tomonday tomonth toquarter tosecond tostartofday tostartoffifteenminutes tostartoffiveminutes tostartofhour \
tostartofinterval tostartofminute tostartofmonth tostartofquarter tostartofweek tostartofyear tostring totypename \
touint16 touint32 touint64 touint8 tounixtimestamp tounixtimestamp64milli toweek toyear toyyyymm toyyyymmdd today \
topk trimboth tuple tupleelement uniq uniqcombined uniqexact uniqexactif uniqhll12 uniqif upperutf8 varpop varsamp \
visitparamextractstring xor xxhash64 yesterday";

/// Whether a function is passed on. Names count in any case.
pub fn is_allowed(kind: Kind, name: &str) -> bool {
    let own = match kind {
        Kind::Trino => TRINO,
        Kind::ClickHouse => CLICKHOUSE,
    };
    [BOTH, own].iter().flat_map(|list| list.split_whitespace()).any(|known| known.eq_ignore_ascii_case(name))
}
