//! The rules of docs/architecture.md: a file of the library imports from its own row of the table there or
//! from rows below it, and no two files import from each other, not by way of others either.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, Meta, UseTree, VisRestricted, Visibility};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A path of names from the root of the crate on.
type Names = Vec<String>;

/// A source file, as far as it imports from others.
struct File {
    module: Names,
    imports: Vec<Names>,
    /// What it hands on, by the name that it has here.
    exports: BTreeMap<String, Names>,
}

impl File {
    fn read(path: &Path, module: Names) -> Self {
        let mut file = Self { module, imports: Vec::new(), exports: BTreeMap::new() };
        file.visit_file(&syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap());
        file
    }

    /// The path from the root on; `None` for one of another crate.
    fn absolute(&self, path: &[String]) -> Option<Names> {
        let steps_up = path.iter().take_while(|name| *name == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([&self.module, &path[1..]].concat()),
            "super" => {
                let parent = &self.module[..self.module.len() - steps_up];
                Some([parent, &path[steps_up..]].concat())
            }
            _ => None,
        }
    }
}

impl Visit<'_> for File {
    fn visit_item_mod(&mut self, item: &ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        let mut names = Vec::new();
        flatten(&item.tree, Vec::new(), &mut names);
        for (path, name) in names {
            match (&item.vis, self.absolute(&path)) {
                (Visibility::Inherited, Some(path)) => self.imports.push(path),
                (Visibility::Inherited, None) => {}
                // Without `self`, it is a child's, or another crate's and leads nowhere.
                (_, path_from_root) => {
                    let child = || [&self.module[..], &path].concat();
                    let path = path_from_root.unwrap_or_else(child);
                    self.exports.insert(name, path);
                }
            }
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        let names: Names = path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.imports.extend(self.absolute(&names));
        visit::visit_path(self, path);
    }

    /// `pub(crate)` and the like are no imports.
    fn visit_vis_restricted(&mut self, _: &VisRestricted) {}
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

/// The paths of a `use`, each with the name that it has from then on.
fn flatten(tree: &UseTree, prefix: Names, names: &mut Vec<(Names, String)>) {
    let with = |name: String| [&prefix[..], &[name]].concat();
    match tree {
        UseTree::Path(path) => flatten(&path.tree, with(path.ident.to_string()), names),
        UseTree::Name(name) if name.ident == "self" => {
            let last = prefix.last().cloned().unwrap_or_default();
            names.push((prefix, last));
        }
        UseTree::Name(name) => names.push((with(name.ident.to_string()), name.ident.to_string())),
        UseTree::Rename(name) => {
            names.push((with(name.ident.to_string()), name.rename.to_string()));
        }
        UseTree::Glob(_) => names.push((prefix, "*".to_owned())),
        UseTree::Group(group) => {
            group.items.iter().for_each(|tree| flatten(tree, prefix.clone(), names));
        }
    }
}

/// The files below `folder`, by module.
fn read(folder: &Path, module: &[String], files: &mut BTreeMap<Names, File>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let inner = [module, std::slice::from_ref(&name)].concat();
        if path.is_dir() {
            read(&path, &inner, files);
        } else if name == "lib" || name == "main" {
            files.insert(Vec::new(), File::read(&path, Vec::new()));
        } else if name != "tests" && path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(inner.clone(), File::read(&path, inner));
        }
    }
}

/// The module of the file where what a path leads to is written.
fn home(files: &BTreeMap<Names, File>, path: &[String]) -> Names {
    let known = (0..=path.len()).rev().find_map(|length| files.get(&path[..length]));
    let file = known.expect("the root is known");
    let rest = &path[file.module.len()..];
    match rest.first().and_then(|name| file.exports.get(name)) {
        Some(elsewhere) if elsewhere != path => home(files, &[elsewhere, &rest[1..]].concat()),
        _ => file.module.clone(),
    }
}

/// From which files each file imports.
fn edges(source: &str) -> BTreeMap<Names, BTreeSet<Names>> {
    let mut files = BTreeMap::new();
    read(&Path::new(ROOT).join(source), &[], &mut files);
    let imports = |file: &File| {
        let homes = file.imports.iter().map(|path| home(&files, path));
        homes.filter(|home| *home != file.module && !home.is_empty()).collect()
    };
    // The root knows everything, and nothing else has to know it.
    let others = files.values().filter(|file| !file.module.is_empty());
    others.map(|file| (file.module.clone(), imports(file))).collect()
}

fn circles(edges: &BTreeMap<Names, BTreeSet<Names>>) -> Vec<String> {
    let reached = |from: &Names| {
        let mut reached = BTreeSet::new();
        let mut next: Vec<_> = edges[from].iter().collect();
        while let Some(file) = next.pop() {
            if reached.insert(file.clone()) {
                next.extend(edges.get(file).into_iter().flatten());
            }
        }
        reached
    };
    let in_circle = edges.keys().filter(|file| reached(file).contains(*file));
    in_circle.map(|file| file.join("::")).collect()
}

#[test]
fn the_files_of_the_library_and_of_the_command_import_in_no_circle() {
    for source in ["src", "lxk/src"] {
        let edges = edges(source);
        assert!(edges.len() > 10, "{source}");
        assert_eq!(circles(&edges), [""; 0], "{source}");
    }
}

#[test]
fn the_library_imports_as_the_table_of_the_page_allows() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/architecture.md")).unwrap();
    let rows = page.lines().skip_while(|line| *line != "| row | modules |").skip(2);
    let mut floors = BTreeMap::new();
    for (number, row) in rows.take_while(|line| line.starts_with('|')).enumerate() {
        floors.extend(row.split('`').skip(1).step_by(2).map(|module| (module.to_owned(), number)));
    }
    for (file, imports) in edges("src") {
        let floor = |file: &Names| {
            let module = &file[0];
            *floors.get(module).unwrap_or_else(|| panic!("the page has no row for {module}"))
        };
        for import in imports {
            let (from, to) = (floor(&file), floor(&import));
            assert!(from <= to, "{} imports {} above it", file.join("::"), import.join("::"));
        }
    }
}
