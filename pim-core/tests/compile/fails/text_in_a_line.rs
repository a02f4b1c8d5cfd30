//! A text that is made at run time may hold a name: no line takes it, also not by way of `Display`.

use pim_core::context::RequestId;

struct Person {
    family_name: String,
}

impl std::fmt::Display for Person {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.family_name)
    }
}

fn main() {
    let person = Person { family_name: String::from("Quillfeather") };
    pim_core::info!("person.seen", request_id = RequestId::mint(), who = person.family_name.clone());
    pim_core::info!("person.seen", request_id = RequestId::mint(), who = person);
}
