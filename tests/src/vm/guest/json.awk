# Prints the values of a JSON text (which JSON that is YAML is, too), one a
# line: PATH=VALUE. Ends without a word at what is not JSON.
{ text = text $0 "\n" }
END { at = 1; value("") }

function space() {
    while (at <= length(text) && index(" \t\r\n", substr(text, at, 1))) at++
}

function string(   out, c) {
    out = ""
    at++
    while (at <= length(text)) {
        c = substr(text, at++, 1)
        if (c == "\"") return out
        if (c == "\\") {
            c = substr(text, at++, 1)
            if (c == "n" || c == "t" || c == "r") c = " "
            # Names and addresses have no others.
            if (c == "u") { at += 4; c = "?" }
        }
        out = out c
    }
    exit
}

function value(path,   c, i, key, out) {
    space()
    c = substr(text, at, 1)
    if (c == "{" || c == "[") {
        at++
        i = 0
        for (;;) {
            space()
            if (index("}]", substr(text, at, 1)) || at > length(text)) { at++; return }
            key = i++
            if (c == "{") {
                if (substr(text, at, 1) != "\"") exit
                key = string()
                space()
                if (substr(text, at++, 1) != ":") exit
            }
            value(path == "" ? key : path "." key)
            space()
            if (substr(text, at, 1) == ",") at++
        }
    }
    if (c == "\"") { out = string(); print path "=" out; return }
    out = ""
    while (at <= length(text) && !index(" \t\r\n,]}", substr(text, at, 1))) out = out substr(text, at++, 1)
    if (out == "") exit
    print path "=" out
}
