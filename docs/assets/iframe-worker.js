// Search in pages opened from a folder, where a browser starts no Worker: its code runs in a hidden frame instead.
if (location.protocol === "file:")
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inner = frame.contentWindow
      const load = src => new Promise((resolve, reject) => {
        const script = inner.document.createElement("script")
        Object.assign(script, { src, onload: resolve, onerror: reject })
        inner.document.body.append(script)
      })
      inner.importScripts = (...urls) => urls.reduce((done, next) => done.then(() => load(next)), Promise.resolve())
      inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const ready = load(url)
      this.postMessage = data => ready.then(() => inner.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
