import { defineConfig } from 'vite'

import { notices, pack } from './build.js'

export default defineConfig({
  // The page and its files refer to each other by relative paths: the gateway may stand behind a proxy, under a prefix.
  base: './',
  build: {
    outDir: '../assets',
    emptyOutDir: true,
    assetsDir: '',
    // A font or an image in a `data:` URL would need an exception in the page's policy.
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 4096,
    modulePreload: { polyfill: false },
    target: 'es2022',
  },
  experimental: {
    // The page is `/`, its files are `/graphiql/…`.
    renderBuiltUrl: (file, { hostType }) => (hostType === 'html' ? `graphiql/${file}` : { relative: true }),
  },
  plugins: [notices(), pack()],
  worker: { format: 'es', plugins: () => [notices()] },
})
