use super::*;

const GOOD: &str = "# HELP shop_wait_seconds Time.\n# TYPE shop_wait_seconds histogram\n# UNIT shop_wait_seconds seconds\n\
    shop_wait_seconds_sum{to=\"a \\\"b\\\" # {c}\"} 1.5\nshop_wait_seconds_count{to=\"a \\\"b\\\" # {c}\"} 2\n\
    shop_wait_seconds_bucket{le=\"0.5\",to=\"a \\\"b\\\" # {c}\"} 1 # {trace_id=\"0a\"} 0.25 1700000000.5\n\
    shop_wait_seconds_bucket{le=\"+Inf\",to=\"a \\\"b\\\" # {c}\"} 2\n\
    # HELP shop_sales Sales.\n# TYPE shop_sales counter\nshop_sales_total 3\n# EOF\n";

#[test]
fn what_is_right_is_read() {
    let families = read(GOOD, Form::Open).unwrap();
    assert_eq!(families.len(), 2);
    let (sample, example) = examples(&families).next().unwrap();
    assert_eq!((sample.label("to"), sample.value), (Some("a \"b\" # {c}"), 1.0));
    assert_eq!((example.value, example.at), (0.25, Some(1_700_000_000.5)));
    let plain = "# HELP shop_sales_total Sales.\n# TYPE shop_sales_total counter\nshop_sales_total 3\n";
    assert_eq!(read(plain, Form::Plain).unwrap()[0].samples[0].value, 3.0);
}

#[test]
fn what_is_wrong_is_refused() {
    for (right, wrong) in [
        ("# EOF\n", ""),
        ("# EOF\n", "# EOF\n\n"),
        ("1.5\n", "1.5 \n"),
        ("1.5\n", "1.5\r\n"),
        ("_sum{", "_mean{"),
        ("shop_sales_total 3", "shop_sales 3"),
        ("shop_sales_total 3", "shop_sales_total -3"),
        ("shop_sales_total 3", "shop_sales_total 3\nshop_sales_total 3"),
        ("shop_sales_total 3", "shop_sales_total three"),
        ("shop_sales_total 3", "shop_sales_total{a=\"1\",a=\"2\"} 3"),
        ("shop_sales_total 3", "shop_sales_total{1a=\"1\"} 3"),
        ("shop_sales_total 3", "shop_sales_total{a=\"\\t\"} 3"),
        ("shop_sales_total 3", "shop_sales_total{a=\"1\" 3"),
        ("# TYPE shop_sales counter\n", ""),
        ("# HELP shop_sales Sales.", "# HELP shop_wait_seconds Sales."),
        ("# UNIT shop_wait_seconds seconds", "# UNIT shop_wait_seconds bytes"),
        ("le=\"+Inf\"", "le=\"0.25\""),
        ("le=\"+Inf\"", "le=\"1.5\""),
        ("c}\"} 2\n# HELP", "c}\"} 0\n# HELP"),
        ("_count{to=\"a \\\"b\\\" # {c}\"} 2", "_count{to=\"a \\\"b\\\" # {c}\"} 3"),
        ("# {trace_id=\"0a\"} 0.25", "# {trace_id=\"0a\"} 0.75"),
        ("# {trace_id=\"0a\"} 0.25", "# 0.25"),
        (
            "shop_wait_seconds_sum{to=\"a \\\"b\\\" # {c}\"} 1.5",
            "shop_wait_seconds_sum{to=\"a \\\"b\\\" # {c}\"} 1.5 # {a=\"b\"} 1",
        ),
    ] {
        assert!(GOOD.contains(right), "{right}");
        assert!(read(&GOOD.replacen(right, wrong, 1), Form::Open).is_err(), "{right:?} became {wrong:?}");
    }
    let long = format!("# {{trace_id=\"{}\"}} 0.25", "0".repeat(121));
    assert!(read(&GOOD.replace("# {trace_id=\"0a\"} 0.25", &long), Form::Open).is_err(), "too long");
    assert!(read(GOOD, Form::Plain).is_err(), "another form");
}
