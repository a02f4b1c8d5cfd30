//! Without a permit the code does not compile; each case has a nearly identical twin that does.

#[test]
fn forgetting_the_check_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile/passes/*.rs");
    cases.compile_fail("tests/compile/fails/*.rs");
}
