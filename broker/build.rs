//! Compiles the program again when a migration is added, since the migrations are part of it.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
