//! Which templates there are: those that are built in, and what may take the place of one.

use std::collections::HashMap;
use std::sync::Arc;

use duo_contract::snapshot::PromptOverride;

use super::template::Template;
use super::{builtin, family};

/// Templates by prompt id, then family.
pub(super) type Library = HashMap<Box<str>, HashMap<Box<str>, Arc<Template>>>;

/// An override may change text and limits, not what opens the prompt or what it is given.
pub(super) fn checked(replacement: &PromptOverride) -> Result<Template, String> {
    let base = builtin::text(&replacement.id, family::BASE)
        .ok_or_else(|| format!("there is no prompt {:?} to replace", replacement.id))?;
    let base = Template::parse(base)?;
    let template = Template::parse(&replacement.text)?;
    let (old, new) = (base.purpose(), template.purpose());
    if (&old.feature, &old.scope) != (&new.feature, &new.scope) {
        return Err(format!(
            "feature and scope of {:?} have to stay {} and {}",
            replacement.id, old.feature, old.scope
        ));
    }
    match new.inputs.iter().find(|input| !old.inputs.contains(input)) {
        Some(input) => Err(format!("{:?} is never given an input {input:?}", replacement.id)),
        None => Ok(template),
    }
}

/// The built-in templates, compiled once.
pub(super) fn builtin_library() -> Library {
    static BUILTIN: std::sync::LazyLock<Library> = std::sync::LazyLock::new(|| {
        let mut library = Library::new();
        for (id, family, text) in builtin::all() {
            let template = Template::parse(text).expect("a unit test compiles every built-in template");
            library
                .entry(id.into())
                .or_default()
                .insert(family.into(), Arc::new(template));
        }
        library
    });
    BUILTIN.clone()
}
