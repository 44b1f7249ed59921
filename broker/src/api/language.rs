//! Programming languages, told by an editor's language id or a file's ending.

use std::path::Path;

/// Name, further language ids, file endings. The name is a language id too.
const LANGUAGES: &[(&str, &[&str], &[&str])] = &[
    ("c", &[], &["c", "h"]),
    ("clojure", &[], &["clj", "cljs", "cljc"]),
    (
        "cpp",
        &["c++", "cuda-cpp"],
        &["cpp", "cc", "cxx", "c++", "hpp", "hh", "hxx", "cu"],
    ),
    ("csharp", &["c#"], &["cs"]),
    ("css", &["scss", "sass", "less"], &["css", "scss", "sass", "less"]),
    ("dart", &[], &["dart"]),
    ("elixir", &[], &["ex", "exs"]),
    ("go", &["golang"], &["go"]),
    ("groovy", &[], &["groovy", "gradle"]),
    ("haml", &[], &["haml"]),
    ("handlebars", &[], &["hbs", "handlebars"]),
    ("haskell", &[], &["hs"]),
    ("hcl", &["terraform"], &["hcl", "tf", "tfvars"]),
    ("html", &["erb"], &["html", "htm", "erb"]),
    ("java", &[], &["java"]),
    (
        "javascript",
        &["javascriptreact", "jsx"],
        &["js", "jsx", "mjs", "cjs"],
    ),
    ("json", &["jsonc"], &["json", "jsonc"]),
    ("kotlin", &[], &["kt", "kts"]),
    ("lua", &[], &["lua"]),
    ("markdown", &[], &["md", "markdown"]),
    ("objective-c", &["objective-cpp"], &["m", "mm"]),
    ("ocaml", &[], &["ml", "mli"]),
    ("perl", &[], &["pl", "pm"]),
    ("php", &[], &["php"]),
    ("powershell", &[], &["ps1", "psm1"]),
    ("protobuf", &["proto"], &["proto"]),
    ("python", &[], &["py", "pyi"]),
    ("r", &[], &["r"]),
    ("ruby", &[], &["rb", "rake", "gemspec"]),
    ("rust", &[], &["rs"]),
    ("scala", &[], &["scala", "sc"]),
    (
        "shell",
        &["shellscript", "bash", "sh", "zsh"],
        &["sh", "bash", "zsh"],
    ),
    ("sql", &[], &["sql"]),
    ("svelte", &[], &["svelte"]),
    ("swift", &[], &["swift"]),
    (
        "typescript",
        &["typescriptreact", "tsx"],
        &["ts", "tsx", "mts", "cts"],
    ),
    ("vue", &[], &["vue"]),
    ("yaml", &["dockercompose"], &["yml", "yaml"]),
    ("zig", &[], &["zig"]),
];

/// The language's name in lower case; empty when nobody knows it.
pub(super) fn name(identifier: Option<&str>, file_name: &str) -> &'static str {
    let identifier = identifier.map(str::to_ascii_lowercase).unwrap_or_default();
    let extension = Path::new(file_name)
        .extension()
        .and_then(|extension| extension.to_str());
    let extension = extension.map(str::to_ascii_lowercase).unwrap_or_default();
    let by_identifier = LANGUAGES
        .iter()
        .find(|(name, ids, _)| *name == identifier || ids.contains(&identifier.as_str()));
    by_identifier
        .or_else(|| {
            LANGUAGES
                .iter()
                .find(|(_, _, endings)| endings.contains(&extension.as_str()))
        })
        .map_or("", |(name, ..)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identifier_decides_before_the_ending() {
        assert_eq!(name(Some("Python"), "a.rb"), "python");
        assert_eq!(name(Some("javascriptreact"), "a"), "javascript");
        assert_eq!(name(None, "src/Main.RS"), "rust");
        assert_eq!(name(None, "Makefile"), "");
        assert_eq!(name(Some("klingon"), "a.klg"), "");
    }
}
